"""The editor that the product trains: the edit map, with the flow beside it that says what z is."""

from __future__ import annotations

import torch
from torch import Tensor

from sdflow_core.method.condition import features
from sdflow_core.method.edit_map import EditMap
from sdflow_core.method.editor import EditorBase, Prepared
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.records.errors import ContractError


class MapEditor(EditorBase):
    """Edits in one pass: w' = map(w, s, s'). No equation is solved, neither for the edit nor before it.

    z is not needed to edit, so `prepare` does not compute it; who audits asks `base`.

    Args:
        flow: The flow that the map was taught after.
        edit_map: The map.
        semantic_encoder: Image -> s.
        encoder_digest: Encoder of the codes.
    """

    kind = "map_editor"

    def __init__(
        self, flow: PrincipalFlow, edit_map: EditMap, semantic_encoder: SemanticEncoder, encoder_digest: str
    ) -> None:
        super().__init__(semantic_encoder, encoder_digest, flow.rows, flow.dim)
        if flow.attributes != len(self.attributes) or edit_map.attributes != flow.attributes:
            raise ContractError(
                "parts of an editor",
                expected=f"flow and edit map for {len(self.attributes)} attributes",
                found=f"{flow.attributes} and {edit_map.attributes}",
            )
        self.flow = flow.eval().requires_grad_(False)
        self.edit_map = edit_map.eval().requires_grad_(False)

    @torch.no_grad()
    def base(self, w_plus: Tensor, s: Tensor, solver: SolverConfig | None = None) -> Tensor:
        """z [B, L, D] of codes [B, L, D] that show s [B, A], by the flow; costs the flow's solver.

        Raises:
            ContractError: Shapes that do not fit.
        """
        self.require(w_plus, s)
        return self.flow.to_base(w_plus, s, solver)

    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        """Nothing to compute but the checks: `Prepared.base` is w+ itself, z is what `base` gives.

        Raises:
            ContractError: Shapes that do not fit.
        """
        self.require(w_plus, s)
        return Prepared(w_plus, s, w_plus, w_plus, 0)

    @torch.no_grad()
    def move(self, prepared: Prepared, s_after: Tensor) -> tuple[Tensor, int]:
        """See `EditorBase.move`; the map's network is evaluated twice, for s' and for s.

        Beyond its reach the map was never taught and says the same for any s'. There the change at the reach
        is continued straight, in proportion to what is asked: a judge may want more than the labeller.
        """
        w_plus = prepared.w_plus
        phi, phi_after = features(prepared.s.to(w_plus)), features(s_after.to(w_plus))
        reach = self.edit_map.config.reach
        within = torch.minimum(torch.maximum(phi_after, phi.clamp_max(-reach)), phi.clamp_min(reach))
        asked, reached = (phi_after - phi).abs(), (within - phi).abs()
        beyond = (asked > reached) & (reached > 0)
        further = torch.where(beyond, asked / reached.clamp_min(1e-6), torch.ones_like(asked))
        edited = self.edit_map(self.flow, w_plus, phi, within)
        return w_plus + further.amax(dim=1)[:, None, None] * (edited - w_plus), 2

    def to_bytes(self) -> bytes:
        """Flow, map, semantic encoder and configuration as safetensors."""
        tensors = {f"flow.{name}": value for name, value in self.flow.state_dict().items()}
        tensors |= {f"map.{name}": value for name, value in self.edit_map.state_dict().items()}
        config = {
            "flow": self.flow.config.model_dump(mode="json"),
            "map": self.edit_map.config.model_dump(mode="json"),
        }
        return self.pack(tensors, config)
