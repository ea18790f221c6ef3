"""Addresses of stores, sources and targets: how they are spelt, and what must not stand in them."""

from __future__ import annotations

from .errors import ContractError

__all__ = ["checked_address", "is_remote", "plain_address"]


def is_remote(address: str) -> bool:
    """Whether it is no folder of this machine, nor one that looks like it.

    Example:
        >>> is_remote("s3://bucket/prefix"), is_remote("file:///srv/store"), is_remote("./store")
        (True, False, False)
    """
    return "://" in address and not address.startswith("file://")


def checked_address(address: str, what: str) -> str:
    """The address, unless it holds credentials: it will stand in records, logs and reports.

    Args:
        address: A path, `store:<key>` or any fsspec address.
        what: Of what, for the message.

    Raises:
        ContractError: It does; the message does not repeat it.
    """
    if is_remote(address) and "@" in address.partition("://")[2].partition("/")[0]:
        raise ContractError(
            f"the address of the {what} holds credentials",
            expected="an address such as s3://bucket/prefix",
            todo="pass them in the environment (AWS_ACCESS_KEY_ID ...), in a profile or by a role",
        )
    return address


def plain_address(address: str) -> str:
    """One place of an object store in one spelling.

    Raises:
        ContractError: Parts of it name no place.

    Example:
        >>> plain_address("s3a://bucket//prefix/")
        's3://bucket/prefix'
    """
    scheme, there, rest = address.partition("://")
    parts = [part for part in rest.split("/") if part]
    if {".", ".."} & set(parts):
        raise ContractError(
            "an address has parts that name no place", found=address, todo="leave out . and .."
        )
    return f"{'s3' if scheme == 's3a' else scheme}://{'/'.join(parts)}" if there else address
