"""How edits are pasted, read before anything starts: no Prefect here, it takes its settings when imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdflow_core.records.errors import ContractError

if TYPE_CHECKING:
    from sdflow_core.faces.paste_back import PasteConfig

__all__ = ["paste_config"]


def paste_config(config: dict[str, Any] | None) -> PasteConfig:
    """How edits are pasted, from plain values; the defaults when there are none.

    Raises:
        ContractError: An option or a value that there is not; names it.
    """
    from pydantic import ValidationError

    from sdflow_core.faces.paste_back import PasteConfig

    try:
        return PasteConfig.model_validate(config or {})
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = ".".join(map(str, wrong["loc"]))
        raise ContractError(
            f"how to paste: {name}", expected=wrong["msg"], found=wrong["input"], todo="change this option"
        ) from None
