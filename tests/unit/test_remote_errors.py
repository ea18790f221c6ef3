"""The table of errors: what clients raise, as errors of ours, without their words."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from sdflow_core.records.errors import (
    AccessError,
    ContractError,
    NotFoundError,
    SDFlowError,
    TransientError,
    UnavailableError,
)
from sdflow_core.records.remote_errors import error_of, fault_of

botocore_errors: Any = pytest.importorskip("botocore.exceptions")
obstore_errors: Any = pytest.importorskip("obstore.exceptions")

KINDS: list[tuple[str, int, type[SDFlowError], str]] = [
    ("InvalidAccessKeyId", 403, AccessError, "access key"),
    ("SignatureDoesNotMatch", 403, AccessError, "secret access key is wrong"),
    ("ExpiredToken", 400, AccessError, "expired"),
    ("InvalidToken", 400, AccessError, "session token"),
    ("RequestTimeTooSkewed", 403, AccessError, "clock"),
    ("NoSuchBucket", 404, AccessError, "bucket does not exist"),
    ("PermanentRedirect", 301, AccessError, "region"),
    ("AccessDenied", 403, ContractError, "no permission to write"),
    ("QuotaExceeded", 403, ContractError, "full, or its quota"),
    ("XMinioStorageFull", 507, ContractError, "full, or its quota"),
    ("EntityTooLarge", 400, ContractError, "larger"),
    ("InvalidObjectState", 403, ContractError, "archive"),
    ("NotImplemented", 501, ContractError, "does not offer"),
    ("SomethingNew", 400, ContractError, "refused a request to write"),
    ("NoSuchKey", 404, NotFoundError, "no such object"),
    ("NoSuchVersion", 404, NotFoundError, "no such object"),
    ("SlowDown", 503, UnavailableError, "too busy"),
    ("InternalError", 500, UnavailableError, "has a problem"),
    ("SomethingNew", 503, UnavailableError, "too busy"),
    ("RequestTimeout", 400, UnavailableError, "in time"),
    ("ConditionalRequestConflict", 409, TransientError, "others write"),
]
SECRET = "AKIASECRETSECRETSECR"


def of_botocore(code: str, status: int, message: str) -> Exception:
    """As s3fs raises it: an OSError whose cause is botocore's."""
    cause = botocore_errors.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "X"
    )
    made = OSError(errno.EIO, message)
    made.__cause__ = cause
    return made


def of_obstore(code: str, status: int, message: str) -> Exception:
    """As obstore raises it: a class, and all the rest in words."""
    return obstore_errors.GenericError(
        f"Generic S3 error: Error performing PUT http://host/b/k?X-Amz-Credential={SECRET} in 1ms - Server "
        f"returned non-2xx status code: {status} Forbidden: <Error><Code>{code}</Code>"
        f"<Message>{message}</Message></Error>\n\nDebug source:\nGeneric {{ status: {status}, }}"
    )


@pytest.mark.parametrize("client", [of_botocore, of_obstore])
@pytest.mark.parametrize(("code", "status", "kind", "words"), KINDS)
def test_codes_of_the_server(
    client: Any, code: str, status: int, kind: type[SDFlowError], words: str
) -> None:
    fault = fault_of(client(code, status, f"said with {SECRET}"))
    assert fault is not None
    error = error_of(fault, "write", "s3://b/k")
    assert type(error) is kind and words in str(error)
    assert code in str(error) and str(status) in str(error) and "s3://b/k" in str(error)
    assert SECRET not in str(error) and "X-Amz" not in str(error)
    assert (fault.retry != "never") == isinstance(error, TransientError)


@pytest.mark.parametrize("client", [of_botocore, of_obstore])
def test_a_full_disk_is_told_apart_from_any_problem(client: Any) -> None:
    fault = fault_of(client("InternalError", 500, "no writable volumes, disk full"))
    assert fault is not None and fault.kind == "full" and fault.retry == "never"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (botocore_errors.NoCredentialsError(), "credentials"),
        (botocore_errors.ProfileNotFound(profile="x"), "profile"),
        (botocore_errors.CredentialRetrievalError(provider="x", error_msg=SECRET), "profile"),
        (botocore_errors.EndpointConnectionError(endpoint_url="http://x"), "unreachable"),
        (botocore_errors.ConnectTimeoutError(endpoint_url="http://x"), "unreachable"),
        (botocore_errors.ReadTimeoutError(endpoint_url="http://x"), "timeout"),
        (botocore_errors.ConnectionClosedError(endpoint_url="http://x"), "cut"),
        (botocore_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), "cut"),
        (botocore_errors.SSLError(endpoint_url="https://x", error="x"), "tls"),
        (pytest.importorskip("botocore.parsers").ResponseParserError("x"), "stranger"),
        (botocore_errors.ParamValidationError(report="Invalid bucket name"), "address"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "cut"),
        (ConnectionRefusedError(), "unreachable"),
        (FileNotFoundError(), "missing"),
        (obstore_errors.AlreadyExistsError("x"), "taken"),
        (obstore_errors.GenericError("HTTP error\nDebug source: kind: Connect"), "unreachable"),
        (obstore_errors.GenericError("HTTP error\nDebug source: kind: Connect, InvalidCertificate"), "tls"),
        (obstore_errors.GenericError("HTTP error\nDebug source: kind: Timeout"), "timeout"),
        (obstore_errors.GenericError("HTTP error: error decoding response body"), "cut"),
    ],
)
def test_errors_without_an_answer(error: Exception, kind: str) -> None:
    fault = fault_of(error)
    assert fault is not None and fault.kind == kind
    assert SECRET not in str(error_of(fault, "read", None))


def test_what_a_wrapper_hides_is_found_in_its_chain() -> None:
    outer = OSError(5, "something")
    outer.__cause__ = botocore_errors.SSLError(endpoint_url="https://x", error="x")
    fault = fault_of(outer)
    assert fault is not None and fault.kind == "tls"


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), ZeroDivisionError()])
def test_our_own_mistakes_are_no_faults_of_the_store(error: Exception) -> None:
    assert fault_of(error) is None
