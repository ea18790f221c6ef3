"""What to compute, as values: the frozen base of all configuration, and the references that steps pass on.

A `Config` holds only what changes results, because it enters the recipe. Where something runs is not
configuration in this sense. A reference is a name with a digest, under 1 kB: bytes stay in the store.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

__all__ = ["BundleRef", "Config", "DatasetRef", "Growing", "PlanRef", "as_recipe"]


class Config(BaseModel):
    """Frozen, and strict about names: a mistyped option is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Growing(BaseModel):
    """Mix-in: options that came later, and leave no trace while they stand at what was done before.

    A recipe, a bundle or a model's file is known by the digest of its values; what does not use a new option
    keeps its digest, and with it all that was made by it.
    """

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        known = type(self).model_fields
        return {n: value for n, value in values.items() if n not in self.later or value != known[n].default}


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
