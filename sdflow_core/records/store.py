"""The front door to bytes: `open_store` for what SDFlow keeps, `open_source` for what a customer gives."""

from .objects import LocalStore, Stat, Store, open_store
from .remote import RemoteStore
from .s3_store import S3Store
from .sources import SourceFolder, SourceItem, open_source

__all__ = [
    "LocalStore",
    "RemoteStore",
    "S3Store",
    "SourceFolder",
    "SourceItem",
    "Stat",
    "Store",
    "open_source",
    "open_store",
]
