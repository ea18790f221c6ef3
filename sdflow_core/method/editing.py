"""Two editors, the flow and a linear direction, and the search for the strength of an edit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdflow_core.faces.checkpoint import load_model
from sdflow_core.method.editor import EditedBatch, Editor, EditorBase, Prepared, file_metadata
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.inversion_free import inversion_free_edit
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import Evaluations, SolverConfig
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = [
    "EditConfig",
    "EditedBatch",
    "Editor",
    "FlowEditor",
    "LinearEditor",
    "Prepared",
    "StrengthSearch",
    "load_editor",
    "search_strength",
]

EDIT_SOLVER = SolverConfig(method="midpoint", steps=4)


class EditConfig(Config):
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
        flow: ConditionalFlow,
        semantic_encoder: SemanticEncoder,
        encoder_digest: str,
        config: EditConfig | None = None,
    ) -> None:
        super().__init__(semantic_encoder, encoder_digest, flow.rows, flow.dim)
        self.flow = flow.eval().requires_grad_(False)
        self.config = config or EditConfig()

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


def load_editor(data: bytes, *, device: str | torch.device = "cpu") -> FlowEditor | LinearEditor:
    """Rebuild an editor from `to_bytes`.

    Raises:
        ContractError: Not an editor of this project, or a damaged one.
    """
    try:
        document = json.loads(file_metadata(data)["sdflow"])
        kind, config, digest = document["kind"], document["config"], document["encoder_digest"]
        tensors = load_tensors(data)
        prefix = "semantic."
        inner = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        network = load_model(save_tensors(inner, metadata=document["semantic"]), device=device)
        semantic = SemanticEncoder(network)
        if tuple(document["attributes"]) != semantic.attributes or kind not in (
            FlowEditor.kind,
            LinearEditor.kind,
        ):
            raise ValueError(f"kind {kind}, attributes {document['attributes']}")
        if kind == LinearEditor.kind:
            return LinearEditor(tensors["directions"].to(device), semantic, digest)
        flow = ConditionalFlow(
            document["rows"], document["dim"], len(semantic.attributes), FlowConfig(**config["flow"])
        )
        prefix = "flow."
        flow.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        return FlowEditor(flow.to(device), semantic, digest, EditConfig(**config["edit"]))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ContractError(
            "not an editor file of this project",
            expected="safetensors made by Editor.to_bytes",
            found=f"{len(data)} bytes: {error}",
            todo="train or import the editor again",
        ) from error


@dataclass(frozen=True)
class StrengthSearch:
    """Result of `search_strength`, rows in the order of the input."""

    edited: EditedBatch
    images: Tensor  # [B, 3, H, W] rendered edits
    scores: Tensor  # [B, A] of those images
    strength: Tensor  # [B]; 0 = was there already, so nothing was changed
    reached: Tensor  # [B] bool


def search_strength(
    editor: Editor,
    w_plus: Tensor,
    images: Tensor | None,
    attribute: int,
    wanted: Tensor,
    render: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    strengths: Sequence[float] = (0.7, 1.0, 1.4, 2.0, 2.8),
    *,
    s_before: Tensor | None = None,
    scores_before: Tensor | None = None,
    tolerance: float = 0.05,
    least_step: float = 0.2,
    micro_batch: int = 16,
    read: int | None = None,
) -> StrengthSearch:
    """Per row the smallest strength whose rendered score reaches the wanted one, else the largest.

    z is computed once; after each strength only unfinished rows are rendered again. Every call of the
    networks sees exactly `micro_batch` rows (the last ones repeated), so that a row's result does not hang
    on how many neighbours it has.

    Args:
        editor: Any editor.
        w_plus: [B, L, D].
        images: What to read s from, [B, 3, H, W]; None needs `s_before`.
        attribute: Index of the attribute to change; the others are asked to stay.
        wanted: Score to reach [B] in [0, 1], from whichever side the row comes.
        render: w+ [b, L, D] -> images [b, 3, H, W].
        score: images -> scores [b, A].
        strengths: To try, ascending.
        s_before: s [B, A]; None reads it from the images.
        scores_before: Scores of the unedited rows [B, A]; None scores the rendered `w_plus`.
        tolerance: A score so near the wanted one has reached it (a sigmoid never gives 1).
        least_step: Least change of s at strength 1, towards the wanted side: s and the score may disagree on
            where a row is.
        micro_batch: Rows a call.
        read: Column of the scores that reads the attribute, where they are not in the editor's order.

    Raises:
        ContractError: Strengths not ascending and positive, no rows, or an attribute that the editor does
            not have.
    """
    tries = [float(value) for value in strengths]
    column = attribute if read is None else read
    if (
        not tries
        or tries[0] <= 0
        or tries != sorted(tries)
        or not 0 <= attribute < len(editor.attributes)
        or len(w_plus) == 0
    ):
        raise ContractError(
            "strength search",
            expected=f"rows, ascending positive strengths, attribute index below {len(editor.attributes)}",
            found=f"{len(w_plus)} rows, strengths {tries}, attribute {attribute}",
        )

    def batched(call: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        return torch.cat([call(*group)[:n] for n, group in _padded(parts, micro_batch)])

    if s_before is None:
        if images is None:
            raise ContractError("attributes before the edit", expected="s_before or images", found="neither")
        s_before = batched(editor.encode_semantics, images)
    with torch.no_grad():
        pictures = batched(render, w_plus)
        scores = batched(score, pictures)
        before = (scores_before if scores_before is not None else scores)[:, column]
        wanted = wanted.to(before)
        side = torch.where(wanted >= before, 1.0, -1.0)  # [B] which way to go
        reached = (side * (before - wanted)) >= -tolerance
        targets = s_before.clone()
        gap = side * (wanted - s_before[:, attribute])
        targets[:, attribute] += side * gap.clamp_min(least_step)
        groups = [editor.prepare(*group) for _, group in _padded((w_plus, s_before), micro_batch)]
        fields = [
            torch.cat([getattr(g, name) for g in groups])[: len(w_plus)] for name in ("base", "decoded")
        ]
        prepared = Prepared(w_plus, s_before, *fields, nfe=groups[0].nfe)
        codes, strength, nfe = w_plus.clone(), torch.zeros_like(before), prepared.nfe
        for value in tries:
            rest = torch.nonzero(~reached)[:, 0]
            if len(rest) == 0:
                break
            for n, (rows,) in _padded((rest,), micro_batch):
                result = editor.apply(prepared.take(rows), targets[rows], value)
                shown = render(result.w_plus)
                seen = score(shown)
                keep = rows[:n]
                codes[keep], pictures[keep], scores[keep] = result.w_plus[:n], shown[:n], seen[:n]
                strength[keep] = value
                reached[keep] = (side[keep] * (seen[:n, column] - wanted[keep])) >= -tolerance
                nfe = max(nfe, result.nfe)
    edited = EditedBatch(codes, w_plus, (codes - w_plus).flatten(1).norm(dim=1), nfe)
    return StrengthSearch(edited, pictures, scores, strength, reached)


def _padded(parts: tuple[Tensor, ...], size: int) -> list[tuple[int, tuple[Tensor, ...]]]:
    """Cut tensors into groups of exactly `size` rows, the last one repeated: [(rows that count, group)]."""
    out: list[tuple[int, tuple[Tensor, ...]]] = []
    total = len(parts[0])
    for start in range(0, total, size):
        index = torch.arange(start, start + size).clamp_max(total - 1).to(parts[0].device)
        out.append((min(size, total - start), tuple(part[index] for part in parts)))
    return out
