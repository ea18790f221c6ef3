"""The configuration of a pretraining, from a file: what is unknown or cannot be is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from sdflow_core.records.errors import ContractError

__all__ = ["check_prior", "read_config", "unused"]


def read_config(values: dict[str, Any] | None) -> Any:
    """A `PretrainConfig` from plain values; the defaults where there are none.

    Raises:
        ContractError: An unknown name or a value that cannot be; says which.
    """
    from sdflow_core.faces.pretraining.run import PretrainConfig

    try:
        config = PretrainConfig.model_validate(values or {})
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        *table, name = wrong["loc"] or ("the whole",)
        place = ".".join(str(part) for part in wrong["loc"]) or "the whole"
        if wrong["type"] == "value_error":  # our own words, which also say what was found
            said = wrong["msg"].removeprefix("Value error, ")
            raise ContractError(f"the configuration of the pretraining: {said}", where=place) from None
        unknown = wrong["type"] == "extra_forbidden"
        known = _known_names(PretrainConfig, table) if unknown else []
        said = "a table" if wrong["type"] == "model_type" else wrong["msg"]
        raise ContractError(
            "the configuration of the pretraining",
            expected=f"one of {', '.join(known)}" if unknown else said.removeprefix("Input should be "),
            found=str(name if unknown else wrong["input"])[:100],
            where=(".".join(str(part) for part in table) or "the whole") if unknown else place,
        ) from None
    unfit = [name for name in (*config.attributes, *config.data.groups) if not name.isidentifier()]
    if unfit or not config.attributes:
        raise ContractError(
            "attribute names", expected="at least one, plain words", found=unfit or "no attribute"
        )
    return config


def unused(config: Any) -> list[str]:
    """What is asked for and cannot be done, and is no error."""
    named = (
        "weight_identity" in config.autoencoder.model_fields_set and config.autoencoder.weight_identity > 0
    )
    if named and not config.teacher:
        return ["weight_identity is set but there is no teacher: nothing holds the person but the pixels"]
    return []


def check_prior(config: Any, pictures: int) -> None:
    """The prior is fitted at the end of all: it must have more codes than factors.

    Args:
        config: `PretrainConfig`.
        pictures: Of people who are not kept for the test.

    Raises:
        ContractError: There are fewer.
    """
    generator = config.autoencoder.generator
    factors = min(config.prior_factors, generator.num_rows * generator.style_dim)
    if pictures <= factors:
        raise ContractError(
            "too few pictures for so many factors of the prior",
            expected=f"more than {factors:,} pictures of people who are not kept for the test",
            found=f"{pictures:,}",
            where="prior_factors",
            todo="lower prior_factors, or add pictures",
        )


def _known_names(config: Any, table: Sequence[int | str]) -> list[str]:
    """Names of the fields in a table of a configuration, given the way there."""
    for part in table:
        config = config.model_fields[part].annotation
    return list(config.model_fields)
