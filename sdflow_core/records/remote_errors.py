"""The errors of object stores: what s3fs, botocore and obstore raise, in our words. One table.

No word of a client or a server goes into a message: they quote addresses, key ids and signatures. What is
shown is our own sentence, the server's error code and the status.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from .errors import AccessError, ContractError, NotFoundError, SDFlowError, TransientError, UnavailableError
from .retrying import Fault, Retry

__all__ = ["Doing", "error_of", "fault_of"]

Doing = Literal["read", "write", "delete", "list"]

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that is used (AWS_PROFILE)"
_LATER = "nothing is lost: run the same command again when the store answers"


@dataclass(frozen=True)
class _Row:
    error: type[SDFlowError]
    what: str
    todo: str | None = None
    retry: Retry = "never"
    happened: bool = False


_TABLE: dict[str, _Row] = {
    # -- who asks
    "credentials": _Row(AccessError, "no credentials for the object store were found", _KEYS),
    "profile": _Row(
        AccessError,
        "the credentials of the object store could not be fetched",
        "check AWS_PROFILE, the shared config and credentials files, and whether its login has ended",
    ),
    "key": _Row(AccessError, "the object store does not know this access key", _KEYS),
    "secret": _Row(AccessError, "the secret access key is wrong: the signature does not match", _KEYS),
    "expired": _Row(
        AccessError,
        "the credentials for the object store have expired",
        f"fetch new ones (AWS_SESSION_TOKEN, or log in again), then run the same command again. {_KEYS}",
    ),
    "token": _Row(
        AccessError,
        "the session token is not one of this access key",
        "set AWS_SESSION_TOKEN anew, or remove it",
    ),
    "clock": _Row(
        AccessError,
        "the clock of this machine is wrong: the object store refuses its requests",
        "set the clock (NTP), then run the same command again",
    ),
    "permission": _Row(ContractError, "no permission to {doing} in the object store", "ask for {right}"),
    "refused": _Row(
        ContractError,
        "the object store refuses to {doing}, and does not say why",
        "check the credentials and the permissions ({right})",
    ),
    # -- where
    "bucket": _Row(
        AccessError,
        "the bucket does not exist",
        "check the address, the endpoint (AWS_ENDPOINT_URL) and the account; sdflow makes no buckets",
    ),
    "address": _Row(AccessError, "this is no name of a bucket", "check the address: s3://bucket/prefix"),
    "region": _Row(
        AccessError,
        "the bucket lies in another region or at another endpoint",
        "set AWS_REGION to its region",
    ),
    "tls": _Row(
        AccessError,
        "no secure connection to the object store",
        "check http:// or https:// in AWS_ENDPOINT_URL, its certificate, and AWS_CA_BUNDLE",
    ),
    "stranger": _Row(
        AccessError, "what answers there is no object store of the S3 kind", "check AWS_ENDPOINT_URL"
    ),
    "setting": _Row(
        AccessError,
        "the settings of the object store cannot be used",
        "check AWS_ENDPOINT_URL and AWS_REGION",
    ),
    "missing": _Row(NotFoundError, "there is no such object in the store"),
    "archived": _Row(ContractError, "the object lies in an archive", "restore it there first"),
    "name": _Row(
        ContractError, "the object store takes no such key", "give the object a shorter, plainer name"
    ),
    # -- room
    "full": _Row(
        ContractError,
        "the object store is full, or its quota is used up",
        "make room or raise the quota, then run the same command again: it goes on where it stopped",
    ),
    "large": _Row(ContractError, "the object is larger than the object store takes", "choose smaller shards"),
    # -- bad moments
    "range": _Row(ContractError, "the object has no such bytes"),
    "unsupported": _Row(ContractError, "the object store does not offer what was asked"),
    "taken": _Row(ContractError, "the key is taken"),
    "changed": _Row(TransientError, "the object changed while it was read"),
    "conflict": _Row(
        TransientError, "others write the same object all the time", _LATER, retry="busy", happened=True
    ),
    "busy": _Row(UnavailableError, "the object store is too busy", _LATER, retry="busy", happened=True),
    "trouble": _Row(UnavailableError, "the object store has a problem", _LATER, retry="busy", happened=True),
    "cut": _Row(
        UnavailableError, "the connection to the object store was cut", _LATER, "unreachable", happened=True
    ),
    "timeout": _Row(
        UnavailableError, "the object store did not answer in time", _LATER, "unreachable", happened=True
    ),
    "unreachable": _Row(
        UnavailableError,
        "nothing answers at the address of the object store",
        "check AWS_ENDPOINT_URL, the network and the name server; then run the same command again",
        "unreachable",
    ),
    "unknown": _Row(ContractError, "the object store refused a request to {doing}"),
}

_CODES: dict[str, str] = {
    "InvalidAccessKeyId": "key",
    "SignatureDoesNotMatch": "secret",
    "ExpiredToken": "expired",
    "ExpiredTokenException": "expired",
    "TokenRefreshRequired": "expired",
    "RequestExpired": "expired",
    "InvalidToken": "token",
    "InvalidClientTokenId": "token",
    "UnrecognizedClientException": "token",
    "RequestTimeTooSkewed": "clock",
    "AccessDenied": "permission",
    "AllAccessDisabled": "permission",
    "AccountProblem": "permission",
    "NotSignedUp": "permission",
    "InvalidPayer": "permission",
    "UnauthorizedAccess": "permission",
    "NoSuchBucket": "bucket",
    "InvalidBucketName": "address",
    "PermanentRedirect": "region",
    "TemporaryRedirect": "region",
    "AuthorizationHeaderMalformed": "region",
    "IllegalLocationConstraintException": "region",
    "NoSuchKey": "missing",
    "NoSuchVersion": "missing",
    "MethodNotAllowed": "missing",  # a version that is a mark of deletion
    "InvalidObjectState": "archived",
    "KeyTooLongError": "name",
    "InvalidURI": "name",
    "QuotaExceeded": "full",
    "XAmzQuotaExceeded": "full",
    "InsufficientStorage": "full",
    "InsufficientStorageSpace": "full",
    "XMinioStorageFull": "full",
    "XMinioAdminBucketQuotaExceeded": "full",
    "ServiceQuotaExceededException": "full",
    "EntityTooLarge": "large",
    "MaxMessageLengthExceeded": "large",
    "PreconditionFailed": "taken",
    "InvalidRange": "range",
    "NotImplemented": "unsupported",
    "ConditionalRequestConflict": "conflict",
    "OperationAborted": "conflict",
    "SlowDown": "busy",
    "ServiceUnavailable": "busy",
    "Throttling": "busy",
    "ThrottlingException": "busy",
    "TooManyRequests": "busy",
    "RequestLimitExceeded": "busy",
    "BandwidthLimitExceeded": "busy",
    "InternalError": "trouble",
    "InternalFailure": "trouble",
    "RequestTimeout": "timeout",
    # damaged on its way; sent once more
    "BadDigest": "trouble",
    "IncompleteBody": "trouble",
    "XAmzContentSHA256Mismatch": "trouble",
    "XAmzContentChecksumMismatch": "trouble",
}
_STATUS: dict[int, str] = {
    301: "region",
    307: "region",
    308: "region",
    400: "refused",
    401: "refused",
    403: "refused",
    404: "missing",
    405: "missing",
    408: "timeout",
    409: "conflict",
    412: "taken",
    413: "large",
    414: "name",
    416: "range",
    429: "busy",
    500: "trouble",
    501: "unsupported",
    502: "trouble",
    503: "busy",
    504: "trouble",
    507: "full",
}
# Classes by name: the core imports no client.
_CLASSES: dict[str, str] = {
    "NoCredentialsError": "credentials",
    "PartialCredentialsError": "credentials",
    "CredentialRetrievalError": "profile",
    "RefreshWithMFAUnsupportedError": "profile",
    "ProfileNotFound": "profile",
    "ConfigNotFound": "profile",
    "ConfigParseError": "profile",
    "TokenRetrievalError": "profile",
    "SSOError": "profile",
    "SSOTokenLoadError": "profile",
    "UnauthorizedSSOTokenError": "profile",
    "LoginRefreshRequired": "profile",
    "MetadataRetrievalError": "profile",
    "InvalidRegionError": "setting",
    "NoRegionError": "setting",
    "InvalidEndpointConfigurationError": "setting",
    "ParamValidationError": "address",
    "InvalidPathError": "name",
    "SSLError": "tls",
    "ClientConnectorCertificateError": "tls",
    "ClientConnectorSSLError": "tls",
    "ResponseParserError": "stranger",
    "ConnectTimeoutError": "unreachable",
    "EndpointConnectionError": "unreachable",
    "ProxyConnectionError": "unreachable",
    "ClientConnectorError": "unreachable",
    "ClientConnectorDNSError": "unreachable",
    "ReadTimeoutError": "timeout",
    "FSTimeoutError": "timeout",
    "TimeoutError": "timeout",
    "ConnectionClosedError": "cut",
    "HTTPClientError": "cut",
    "IncompleteReadError": "cut",
    "ResponseStreamingError": "cut",
    "ClientPayloadError": "cut",
    "ServerDisconnectedError": "cut",
    "ClientOSError": "cut",
    "IncompleteRead": "cut",
}
_CLIENTS = ("botocore", "aiobotocore", "s3fs", "obstore", "aiohttp", "fsspec")
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9]{1,60})\s*</Code>")
_ANSWER = re.compile(r"non-2xx status code: (\d{3})|status: (\d{3}),")
_FULL = re.compile(r"no space|disk full|quota|no (free|writable) volume|not enough space|storage full", re.I)
# Words of obstore, whose HTTP errors are all of one class; looked for in this order.
_WORDS: tuple[tuple[str, str], ...] = (
    (
        r"InvalidCertificate|UnknownIssuer|InvalidContentType|certificate|NotValidForName|received corrupt",
        "tls",
    ),
    (r"dns error|lookup address|kind: Connect\b|tcp connect|ConnectionRefused", "unreachable"),
    (r"kind: Timeout|TimedOut|timed out", "timeout"),
    (
        r"HTTP error|IncompleteMessage|ConnectionReset|BrokenPipe|decoding response body|kind: Interrupted",
        "cut",
    ),
    (r"[Ee]nd of file|UnexpectedEof|connection closed|closed before", "cut"),
    (r"invalid uri|relative URL|builder error", "setting"),
)


def fault_of(error: Exception) -> Fault | None:
    """What an exception of a client means; None where it is none."""
    said = _response(error)
    if said is not None:
        code, status, message = said
        return _answered(code, status, message)
    for one in _chain(error):
        kind = _CLASSES.get(type(one).__name__)
        if kind is not None and _of_client(one):
            return _fault(kind)
    if type(error).__module__.partition(".")[0] == "obstore" or "Debug source:" in str(error):
        return _of_text(error)
    if isinstance(error, FileNotFoundError):
        return _fault("missing")
    if isinstance(error, TimeoutError):
        return _fault("timeout")
    if isinstance(error, ConnectionRefusedError):
        return _fault("unreachable")
    if isinstance(error, ConnectionError):
        return _fault("cut")
    if isinstance(error, PermissionError):
        return _fault("refused")
    if isinstance(error, OSError) or _of_client(error):
        return _fault("unknown", type(error).__name__)
    return None


def error_of(fault: Fault, doing: Doing, where: str | None) -> SDFlowError:
    """A fault as an error of ours.

    Args:
        fault: What went wrong.
        doing: At what.
        where: The address, for people; None where it must not be told.
    """
    row = _TABLE[fault.kind]
    right = {
        "read": "s3:GetObject",
        "write": "s3:PutObject",
        "delete": "s3:DeleteObject",
        "list": "s3:ListBucket",
    }[doing]
    found = " ".join(part for part in (fault.code, f"(HTTP {fault.status})" if fault.status else "") if part)
    return row.error(
        row.what.format(doing=doing, right=right),
        found=found or None,
        where=where,
        todo=row.todo.format(doing=doing, right=right) if row.todo else None,
    )


def _fault(kind: str, code: str = "", status: int = 0) -> Fault:
    row = _TABLE[kind]
    return Fault(kind, code, status, row.retry, row.happened)


def _answered(code: str, status: int, message: str) -> Fault:
    if _FULL.search(message) and (status >= 500 or status in (400, 403, 409)):
        return _fault("full", code, status)
    kind = _CODES.get(code)
    if kind is None and code.isdigit():  # answers to HEAD have no body, and botocore puts the status here
        status, code = status or int(code), ""
    if kind is None:
        kind = _STATUS.get(status, "trouble" if status >= 500 else "unknown")
        if code and kind in ("refused", "missing"):
            kind = "unknown"
    # Only an answer of the server in its own time is sure to have done nothing; a proxy in between may lie.
    return _fault(kind, code, status)


def _response(error: Exception) -> tuple[str, int, str] | None:
    """Code, status and message of a server's answer that botocore has read."""
    for one in _chain(error):
        said: Any = getattr(one, "response", None)
        if isinstance(said, dict) and "Error" in said:
            answer = cast("dict[str, dict[str, Any]]", said)
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return (
                str(answer["Error"].get("Code") or ""),
                int(status or 0),
                str(answer["Error"].get("Message") or ""),
            )
    return None


def _of_text(error: Exception) -> Fault:
    """obstore tells everything in words."""
    text = str(error)
    name = type(error).__name__
    if name == "UnauthenticatedError" and "credential provider" in text:
        # ours raised: its own error was put down there
        return _fault("credentials" if "NoCredentials" in text else "profile")
    code, answer = _CODE.search(text), _ANSWER.search(text)
    status = int(next(group for group in answer.groups() if group)) if answer else 0
    if code or status:
        return _answered(code.group(1) if code else "", status, text.partition("Debug source:")[0])
    if name == "AlreadyExistsError":
        return _fault("taken")
    if name == "PreconditionError":
        return _fault("changed")
    if isinstance(error, FileNotFoundError):
        return _fault("missing")
    for words, kind in _WORDS:
        if re.search(words, text):
            return _fault(kind)
    return _fault("unknown", name)


def _of_client(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in _CLIENTS or isinstance(error, TimeoutError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__
