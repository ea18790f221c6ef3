"""How the two clients of S3 are built: s3fs by the usual chain of settings, obstore with what s3fs found.

Both are reached through fsspec's registry. Nothing here asks a server anything.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, cast
from urllib.parse import urlsplit

from .errors import AccessError, ContractError

__all__ = ["bulk_client", "s3fs_client"]

_CONNECT_SECONDS = 5
_READ_SECONDS = 60  # between two pieces of an answer
_WHOLE_SECONDS = 600  # for one object
_TOKEN_LIFE = timedelta(minutes=10)  # obstore asks again when half of it is left; botocore renews before that
_CONNECTIONS = 32
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h
_BULK = "sdflow-bulk-s3"
_HOSTABLE = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


def s3fs_client() -> Any:
    """s3fs with settings that were measured; retries are ours, so one request here is one request."""
    import fsspec

    _few_heaps()
    _check_environment()
    style = os.environ.get("SDFLOW_S3_ADDRESSING", "")
    if style not in ("", "auto", "path", "virtual"):
        raise ContractError(
            "the setting SDFLOW_S3_ADDRESSING", expected="path, virtual or auto", found=repr(style)
        )
    config: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    }
    if style:
        config["s3"] = {"addressing_style": style}
    try:
        # max_concurrency=1: one GET needs no HEAD before it. Listings must not be cached: others write.
        made: Any = fsspec.filesystem(
            "s3", skip_instance_cache=True, use_listings_cache=False, max_concurrency=1, config_kwargs=config
        )
    except (ImportError, ValueError) as error:
        raise ContractError(
            "this kind of store is not available",
            found=f"s3:// ({error})",
            todo="install its client: pip install 'sdflow-pipeline[s3]'",
        ) from error
    made.retries = 1
    return made


def _check_environment() -> None:
    """What clients take for a broken connection, or end with a traceback at, is said before they are asked.

    Raises:
        ContractError: Names the setting; its value only where that cannot be a secret.
    """
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        value = os.environ.get(name, "")
        if value and not _is_endpoint(value):
            raise ContractError(
                f"the setting {name}",
                expected="http:// or https://, a host, and a port from 1 to 65535 if need be",
                found="user or password in it" if "@" in value else repr(value),
                todo=f"change or unset {name}",
            )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if re.search(r"\s|[^\x20-\x7e]", os.environ.get(name, "")):
            raise ContractError(
                f"the setting {name}",
                expected="no space, newline or other odd character",
                found="one (its value is not shown)",
                todo="a file of a secret often ends with a newline: cut it off",
            )
    bundle = os.environ.get("AWS_CA_BUNDLE", "")
    if bundle and not os.path.exists(bundle):
        raise ContractError(
            "the setting AWS_CA_BUNDLE", expected="a file of certificates", found="no such file", where=bundle
        )
    client = os.environ.get("SDFLOW_S3_CLIENT", "")
    if client not in ("", "obstore", "s3fs"):
        raise ContractError("the setting SDFLOW_S3_CLIENT", expected="obstore or s3fs", found=repr(client))


def _is_endpoint(value: str) -> bool:
    try:
        parts = urlsplit(value)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        return plain and not re.search(r"\s", value) and parts.port != 0
    except ValueError:
        return False


@cache
def _few_heaps() -> None:
    """Let all threads of this process share a few heaps of the C library, where that is glibc.

    By default it gives each thread one and keeps there what is freed: the threads of two clients and of those
    who wait for them, each with an object of some megabytes for a moment, made a process grow by 100 MB.
    Arrow's own allocator does the same with some 4 MB a thread, so Arrow is asked to use these heaps too.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_ARENA_MAX, min(4, os.cpu_count() or 1))
    if not os.environ.get("ARROW_DEFAULT_MEMORY_POOL"):  # who sets it knows better
        import pyarrow

        pyarrow.set_memory_pool(pyarrow.system_memory_pool())


def bulk_client(s3: Any, bucket: str) -> Any:
    """obstore's store of this bucket, with the settings that s3fs found; None where it cannot serve.

    Taken out of obstore's fsspec face, whose own methods cross an event loop (slower from threads) and whose
    `pipe_file` knows no create.
    """
    import fsspec

    if os.environ.get("SDFLOW_S3_CLIENT", "") == "s3fs":
        return None
    meta: Any = s3.s3.meta
    config: Any = meta.config
    if getattr(config, "use_fips_endpoint", None) or getattr(config, "use_dualstack_endpoint", None):
        return None
    try:
        if _BULK not in fsspec.registry:
            fsspec.register_implementation(_BULK, "obstore.fsspec.FsspecStore")
        face: Any = fsspec.get_filesystem_class(_BULK)
    except (ImportError, ValueError):
        return None  # it is not installed: s3fs does everything, only slower
    endpoint = urlsplit(str(meta.endpoint_url))
    style = (config.s3 or {}).get("addressing_style") or "auto"
    ours = str(endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    # as botocore decides: a bucket whose name is no part of a host's name goes into the path
    virtual = (style == "virtual" or (ours and style == "auto")) and bool(_HOSTABLE.fullmatch(bucket))
    settings: dict[str, Any] = {
        "region": meta.region_name if meta.region_name not in (None, "aws-global") else "us-east-1",
        "endpoint": f"{endpoint.scheme}://{bucket + '.' if virtual else ''}{endpoint.netloc}",
        "virtual_hosted_style_request": virtual,
    }
    options: dict[str, Any] = {
        "allow_http": endpoint.scheme == "http",
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=_READ_SECONDS),
        "timeout": timedelta(seconds=_WHOLE_SECONDS),
        "pool_max_idle_per_host": str(_CONNECTIONS),
    }
    authority = s3.session.get_config_variable("ca_bundle")
    if authority:
        with open(str(authority), "rb") as file:
            options["root_certificate"] = file.read()
    made = face(
        protocol="s3",
        skip_instance_cache=True,
        config=settings,
        client_options=options,
        retry_config={"max_retries": 0},
        credential_provider=_credentials_of(s3),
    )
    return made._construct_store(bucket)


def _credentials_of(s3: Any) -> Callable[[], dict[str, Any]]:
    """Hands the credentials of s3fs' session to obstore, again and again: they are renewed there."""
    from fsspec.asyn import sync

    async def fetch() -> Any:
        found = await s3.session.get_credentials()
        return None if found is None else await found.get_frozen_credentials()

    def provide() -> dict[str, Any]:
        found: Any = cast("Any", sync)(s3.loop, fetch, timeout=_READ_SECONDS)
        if found is None:
            raise AccessError("NoCredentials")
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + _TOKEN_LIFE,
        }

    return provide
