"""Which flows there are, told apart by the `kind` of their configuration."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter

from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.paper import PaperFlow, PaperFlowConfig
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow

FlowConfigs: TypeAlias = PrincipalConfig | FlowConfig | PaperFlowConfig
AnyFlowConfig: TypeAlias = Annotated[FlowConfigs, Field(discriminator="kind")]
AnyFlow: TypeAlias = PrincipalFlow | ConditionalFlow | PaperFlow

_configs: TypeAdapter[FlowConfigs] = TypeAdapter(AnyFlowConfig)


def read_flow_config(values: dict[str, Any]) -> FlowConfigs:
    """A flow's configuration from plain values; files older than `kind` hold conditional flows.

    Raises:
        pydantic.ValidationError: An unknown kind, or values that it does not have.
    """
    return _configs.validate_python({"kind": "conditional", **values})


def make_flow(rows: int, dim: int, attributes: int, config: FlowConfigs) -> AnyFlow:
    """The flow of this configuration for codes [L, D] and A attributes, not yet trained.

    Example:
        >>> type(make_flow(2, 3, 1, PrincipalConfig(directions=4))).__name__
        'PrincipalFlow'
    """
    if isinstance(config, PrincipalConfig):
        return PrincipalFlow(rows, dim, attributes, config)
    if isinstance(config, PaperFlowConfig):
        return PaperFlow(rows, dim, attributes, config)
    return ConditionalFlow(rows, dim, attributes, config)
