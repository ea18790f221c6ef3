"""Two editors, the flow and a linear direction. What to ask of them is found by `aiming`."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import load_model
from sdflow_core.method.direction_editor import DirectionEditor
from sdflow_core.method.edit_map import EditMap, EditMapConfig
from sdflow_core.method.editor import EditedBatch, Editor, EditorBase, Prepared, file_metadata
from sdflow_core.method.flow_kinds import AnyFlow, make_flow, read_flow_config
from sdflow_core.method.inversion_free import inversion_free_edit
from sdflow_core.method.map_editor import MapEditor
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import Evaluations, SolverConfig
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = [
    "DirectionEditor",
    "EditedBatch",
    "Editor",
    "FlowEditConfig",
    "FlowEditor",
    "LinearEditor",
    "MapEditor",
    "Prepared",
    "load_editor",
]

# midpoint with 4 steps costs the same and misses 2 % of the edit on an 18 x 512 flow (bench_exact.py)
EDIT_SOLVER = SolverConfig(method="rk4", steps=2)
_RETIRED = ("embedding",)  # options of readers that files of earlier versions name


class FlowEditConfig(Config):
    """How a flow edits.

    Attributes:
        solver: Both ways.
        corrected: Return w + D(z, s') - D(z, s) instead of D(z, s'): the solver's round trip error cancels.
        inversion_free: Do not invert at all (`inversion_free.py`); `solver.steps` steps, the method is
            ignored. For flows trained by matching.
    """

    solver: SolverConfig = EDIT_SOLVER
    corrected: bool = True
    inversion_free: bool = False


class FlowEditor(EditorBase):
    """Edits by there-and-back through the flow: z = to_base(w, s), w' = from_base(z, s')."""

    kind = "flow_editor"

    def __init__(
        self,
        flow: AnyFlow,
        semantic_encoder: SemanticEncoder,
        encoder_digest: str,
        config: FlowEditConfig | None = None,
    ) -> None:
        super().__init__(semantic_encoder, encoder_digest, flow.rows, flow.dim)
        self.flow = flow.eval().requires_grad_(False)
        self.config = config or FlowEditConfig()

    @torch.no_grad()
    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        """w+ [B, L, D], s [B, A] -> z, and D(z, s) when the edit is corrected.

        Raises:
            ContractError: Shapes that do not fit.
        """
        self.require(w_plus, s)
        cost = Evaluations()
        if self.config.inversion_free:  # the edit starts from the code itself
            return Prepared(w_plus, s, w_plus, w_plus, 0)
        z = self.flow.to_base(w_plus, s, self.config.solver, cost)
        decoded = self.flow.from_base(z, s, self.config.solver, cost) if self.config.corrected else w_plus
        return Prepared(w_plus, s, z, decoded, cost.count)

    def move(self, prepared: Prepared, s_after: Tensor) -> tuple[Tensor, int]:
        """See `EditorBase.move`."""
        cost = Evaluations()
        if self.config.inversion_free:
            w, s, steps = prepared.w_plus, prepared.s, self.config.solver.steps
            return inversion_free_edit(self.flow, w, s, s_after, steps, evaluations=cost), cost.count
        edited = self.flow.from_base(prepared.base, s_after, self.config.solver, cost)
        if self.config.corrected:
            edited = prepared.w_plus + (edited - prepared.decoded)
        return edited, cost.count

    def to_bytes(self) -> bytes:
        """Flow, semantic encoder and configuration as safetensors."""
        tensors = {f"flow.{name}": value for name, value in self.flow.state_dict().items()}
        config = {
            "flow": self.flow.config.model_dump(mode="json"),
            "edit": self.config.model_dump(mode="json"),
        }
        return self.pack(tensors, config)


class LinearEditor(EditorBase):
    """The baseline: w' = w + sum_a (s'_a - s_a) * direction_a. Directions come from `linear.fit_linear`."""

    kind = "linear_editor"

    def __init__(self, directions: Tensor, semantic_encoder: SemanticEncoder, encoder_digest: str) -> None:
        super().__init__(semantic_encoder, encoder_digest, directions.shape[1], directions.shape[2])
        if len(directions) != len(self.attributes):
            raise ContractError(
                "directions", expected=f"one for each of {self.attributes}", found=len(directions)
            )
        self.directions = directions.detach()  # [A, L, D], the change of w+ for s_a: 0 -> 1

    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        """Nothing to compute but the checks.

        Raises:
            ContractError: Shapes that do not fit.
        """
        self.require(w_plus, s)
        return Prepared(w_plus, s, w_plus, w_plus, 0)

    def move(self, prepared: Prepared, s_after: Tensor) -> tuple[Tensor, int]:
        """See `EditorBase.move`."""
        delta = torch.einsum("ba,ald->bld", s_after - prepared.s, self.directions.to(prepared.w_plus))
        return prepared.w_plus + delta, 0

    def to_bytes(self) -> bytes:
        """Directions and semantic encoder as safetensors."""
        return self.pack({"directions": self.directions}, {})


def load_editor(
    data: bytes, *, device: str | torch.device = "cpu"
) -> FlowEditor | MapEditor | LinearEditor | DirectionEditor:
    """Rebuild an editor from `to_bytes`.

    Raises:
        ContractError: Not an editor of this project, a damaged one, or one whose weights are not finite or of
            another width, number of layers or set of attributes than it says.
    """
    try:
        document = json.loads(file_metadata(data)["sdflow"])
        kind, config, digest = document["kind"], document["config"], document["encoder_digest"]
        tensors = load_tensors(data)
        network = load_model(
            save_tensors(_part(tensors, "semantic."), metadata=document["semantic"]), device=device
        )
        semantic = SemanticEncoder(network)
        if tuple(document["attributes"]) != semantic.attributes:
            raise ValueError(f"attributes {document['attributes']}, of its network {semantic.attributes}")
        if kind == LinearEditor.kind:
            wanted = [len(semantic.attributes), document["rows"], document["dim"]]
            if list(tensors["directions"].shape) != wanted:
                raise ValueError(f"directions are {list(tensors['directions'].shape)}, not {wanted}")
            _require_finite(tensors, "the directions")
            return LinearEditor(tensors["directions"].to(device), semantic, digest)
        if kind == DirectionEditor.kind:
            mean, places = (tensors[n].to(device) if n in tensors else None for n in ("mean", "places"))
            directions = tensors["directions"].to(device)
            return DirectionEditor(directions, semantic.attributes, digest, mean=mean, places=places)
        if kind not in (FlowEditor.kind, MapEditor.kind):
            raise ValueError(f"kind {kind}")
        count = len(semantic.attributes)
        flow = make_flow(document["rows"], document["dim"], count, read_flow_config(config["flow"]))
        _load(flow, _part(tensors, "flow."), "the flow")
        if kind == FlowEditor.kind or not isinstance(flow, PrincipalFlow):
            return FlowEditor(flow.to(device), semantic, digest, FlowEditConfig(**config["edit"]))
        edit_map = EditMap(len(flow.basis), count, _map_config(config["map"]))
        _load(edit_map, _part(tensors, "map."), "the edit map")
        return MapEditor(flow.to(device), edit_map.to(device), semantic, digest)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ContractError(
            "not an editor file of this project",
            expected="safetensors made by Editor.to_bytes",
            found=f"{len(data)} bytes: {error}",
            todo="train or import the editor again",
        ) from error


def _map_config(values: dict[str, Any]) -> EditMapConfig:
    """Of a file that may be older: what its readers were told that is no option any more is left out. It said
    how the map was taught, not how it edits, so the file stays as good as it was."""
    readers = {name: value for name, value in values["readers"].items() if name not in _RETIRED}
    return EditMapConfig.model_validate(values | {"readers": readers})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Fill a module, or say which tensors are of another width, missing or too many."""
    own = module.state_dict()
    missing, more = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    other = [
        f"{name} is {list(tensors[name].shape)}, not {list(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    if missing or more or other:
        parts = [f"without {missing[:3]}" if missing else "", f"with {more[:3]} too many" if more else ""]
        raise ValueError(f"weights of {what} do not fit: " + "; ".join(p for p in [*parts, *other[:3]] if p))
    _require_finite(tensors, what)
    module.load_state_dict(tensors)


def _require_finite(tensors: dict[str, Tensor], what: str) -> None:
    bad = [name for name, value in sorted(tensors.items()) if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f"weights of {what} are not finite: {', '.join(bad[:3])}")
