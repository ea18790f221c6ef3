"""What to compute, as values: the frozen base of all configuration, and the references that steps pass on.

A `Config` holds only what changes results, because it enters the recipe. Where something runs is not
configuration in this sense. A reference is a name with a digest, under 1 kB: bytes stay in the store.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["BundleRef", "Config", "DatasetRef", "PlanRef", "as_recipe"]


class Config(BaseModel):
    """Frozen, and strict about names: a mistyped option is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRef(Config):
    """One version of a table.

    Attributes:
        uri: Where the table lies.
        version: Number of the last journal entry that this version includes.
        digest: Hash of the sorted row keys, never of file bytes.
        rows: How many rows are held.
    """

    uri: str
    version: int
    digest: str
    rows: int


class BundleRef(Config):
    """The models that belong together, by their common digest."""

    uri: str
    digest: str


class PlanRef(Config):
    """A written plan: which rows are to be computed."""

    uri: str
    rows: int


def as_recipe(config: BaseModel) -> dict[str, Any]:
    """The configuration as plain JSON values, ready for `keys.recipe`.

    Example:
        >>> as_recipe(BundleRef(uri="models/bundles", digest="ab"))
        {'uri': 'models/bundles', 'digest': 'ab'}
    """
    return config.model_dump(mode="json")
