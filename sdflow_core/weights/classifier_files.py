"""Files of the 40 + 6 attribute classifier: `r34_a40_age_256_classifier.pth` and its ResNet-50 sister.

A bare state dict whose names may carry `module.` of a data-parallel training, anywhere in the name. Depth,
width and numbers of outputs are told from shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdflow_core.faces.attribute_classifier import (
    AGE_ATTRIBUTES,
    CELEBA_ATTRIBUTES,
    AttributeClassifier,
    AttributeClassifierConfig,
)
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.describing import Described
from sdflow_core.weights.fitting import count_parameters, fill, numbers

__all__ = ["load", "recognise"]

_LICENCE = (
    "the project that published this classifier names no licence; CelebA, on which it was trained, is for "
    "non-commercial research"
)


def recognise(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Described | None:
    """Tell a classifier from names and shapes; works on `meta` tensors.

    Returns:
        What it is, or None for something else. `attributes` counts all outputs, ages among them.
    """
    del plain
    names = {_bare(name): value for name, value in tensors.items()}
    sizes = _sizes(names)
    if sizes is None:
        return None
    heads, ages = sizes["heads"], sizes["ages"]
    return Described(
        kind="attribute_classifier",
        family=f"r{sizes['depth']}-a{heads}-age",
        resolution=256,
        depth=sizes["depth"],
        attributes=heads + ages,
        parameters=count_parameters(names),
        notes=(f"{heads} attributes and {ages} ordinal ages",),
        licence=_LICENCE,
    )


def load(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    *,
    attributes: Sequence[str] | None = None,
    ages: Sequence[str] | None = None,
    resolution: int = 256,
    where: str = "the file",
) -> AttributeClassifier:
    """Make the classifier of a file.

    Args:
        tensors: The state dict.
        plain: What lies beside it; nothing is read from it.
        attributes: Names of the heads in their order, which the file does not hold; None is right for the 40
            of CelebA only.
        ages: Names of the age outputs; None is right for the published 6 only.
        resolution: Side in px to which pictures are brought, which no shape tells either.
        where: The file, for messages.

    Returns:
        The classifier in evaluation mode, without gradients.

    Raises:
        ContractError: Not such a file; another number of names than of outputs; two tensors of one name;
            every tensor that is missing, unexpected, of another shape or not finite.
    """
    del plain
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _bare(name) in state:
            raise ContractError("a tensor that is there twice", found=_bare(name), where=where)
        state[_bare(name)] = value
    sizes = _sizes(state)
    if sizes is None:
        raise ContractError(
            "not an attribute classifier",
            expected="extractor.*, attr_heads.* and age_heads.*",
            found=", ".join(list(state)[:8]) or "no tensors",
            where=where,
        )
    config = AttributeClassifierConfig(
        depth=sizes["depth"],
        width=sizes["width"],
        attributes=_names(attributes, CELEBA_ATTRIBUTES, sizes["heads"], "attributes", where),
        ages=_names(ages, AGE_ATTRIBUTES, sizes["ages"], "ages", where),
        resolution=resolution,
    )
    with torch.device("meta"):
        classifier = AttributeClassifier(config)
    fill(classifier, state, what=f"a classifier on ResNet-{config.depth}", where=where)
    return classifier


def _bare(name: str) -> str:
    return name.replace("module.", "")


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    stem, ages = state.get("extractor.conv1.weight"), state.get("age_heads.fc.weight")
    heads = numbers(state, r"attr_heads\.(\d+)\.")
    if (
        stem is None
        or stem.ndim != 4
        or ages is None
        or ages.ndim != 2
        or not heads
        or heads[-1] >= len(state)
    ):
        return None
    return {
        "depth": 50 if "extractor.layer1.0.conv3.weight" in state else 34,
        "width": stem.shape[0],
        "heads": heads[-1] + 1,
        "ages": ages.shape[0],
    }


def _names(
    given: Sequence[str] | None, published: tuple[str, ...], count: int, what: str, where: str
) -> tuple[str, ...]:
    names = published if given is None else tuple(given)
    if len(names) != count or len(set(names)) != count:
        raise ContractError(
            f"{what} of the classifier",
            expected=f"{count} different names, one for each output",
            found=f"{len(names)}: {', '.join(names[:4])}, ...",
            where=where,
            todo=f"name the {what} in the order of the training",
        )
    return names
