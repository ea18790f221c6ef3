"""The two keys that everything is known by: `recipe` (how) and `row_key` (how, and from what)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import ContractError

__all__ = [
    "canonical_json",
    "dataset_digest",
    "digest_of_sorted",
    "recipe",
    "recipe_document",
    "row_key",
    "sha256_hex",
]

RECIPE_FORMAT = 1
_spelled = json.encoder.encode_basestring  # a text as canonical JSON spells it


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8.

    Raises:
        ContractError: The value has no JSON spelling: NaN, infinity, an unknown type, a broken string, a key
            that is not a string.

    Example:
        >>> canonical_json({"b": 1, "a": [True, None, "é"]}).decode()
        '{"a":[true,null,"é"],"b":1}'
    """
    _refuse_other_keys(value)
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ContractError(
            "a value cannot be written as canonical JSON",
            expected="finite numbers, text, booleans, null, lists and mappings with text keys",
            found=str(error),
        ) from error


def _refuse_other_keys(value: object) -> None:
    # json would write the key 1 as "1" without a word: two different mappings would get one digest.
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ContractError("a mapping has a key that is not text", expected="text", found=repr(key))
            _refuse_other_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_other_keys(item)


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def recipe_document(
    step: str, version: int, config: Mapping[str, Any], models: Mapping[str, str]
) -> dict[str, Any]:
    """What a recipe is the hash of. It is saved too, so that a recipe can be read years later.

    Args:
        step: Name of the step.
        version: Version of the step; raised by hand when its results change.
        config: All that changes results, precision and micro-batch included; plain JSON values.
        models: Kind of model -> digest of its weights.
    """
    return {
        "format": RECIPE_FORMAT,
        "step": step,
        "version": version,
        "config": dict(config),
        "models": dict(models),
    }


def recipe(step: str, version: int, config: Mapping[str, Any], models: Mapping[str, str]) -> str:
    """Hash of how a step computes; see `recipe_document`.

    Example:
        >>> recipe("invert", 1, {"batch": 8}, {}) == recipe("invert", 2, {"batch": 8}, {})
        False
    """
    return sha256_hex(canonical_json(recipe_document(step, version, config, models)))


def row_key(recipe: str, inputs: Sequence[str]) -> str:
    """Hash of how and from what. The order of the inputs counts.

    Example:
        >>> row_key("r", ["a", "b"]) == row_key("r", ["b", "a"])
        False
    """
    try:  # a million of these are planned a night: spelled out, it takes a third of the time
        text = f'{{"inputs":[{",".join(map(_spelled, inputs))}],"recipe":{_spelled(recipe)}}}'
        return hashlib.sha256(text.encode()).hexdigest()
    except (TypeError, UnicodeEncodeError):
        return sha256_hex(canonical_json({"recipe": recipe, "inputs": list(inputs)}))


def dataset_digest(row_keys: Iterable[str]) -> str:
    """Digest of a set of rows: neither their order nor how they lie in files counts.

    Example:
        >>> dataset_digest(["b", "a"]) == dataset_digest(["a", "b", "a"])
        True
    """
    return digest_of_sorted(sorted(set(row_keys)))


def digest_of_sorted(row_keys: Sequence[str]) -> str:
    """`dataset_digest` of row keys that are sorted already, each once; the caller vouches for it."""
    # Of a hundred thousand keys, spelling them as JSON is most of the work. Plain ones need no escaping.
    joined = '","'.join(row_keys)
    plain = joined.isascii() and joined.isprintable() and "\\" not in joined
    if plain and row_keys and joined.count('"') == 2 * (len(row_keys) - 1):
        return sha256_hex(b'["' + joined.encode() + b'"]')
    return sha256_hex(canonical_json(list(row_keys)))
