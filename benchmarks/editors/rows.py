"""The rows of the comparison: who is trained, and how. A trained editor is kept under what it depends on."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.editors.material import Material
from benchmarks.editors.options import Budget, named
from sdflow_core.faces.networks import to_uint8
from sdflow_core.faces.recognizer import CropRecognizer
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import features
from sdflow_core.method.edit_map import EditMap, EditMapConfig
from sdflow_core.method.editing import EditConfig, FlowEditor, LinearEditor, load_editor
from sdflow_core.method.editor import Editor, EditorBase, Prepared
from sdflow_core.method.linear import fit_linear
from sdflow_core.method.map_training import MapTraining
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.training import TrainingConfig, train_editor

_FLOW_BATCH, _FLOW_RATE, _FLOW_NOISE = 128, 1e-3, 0.1


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: As printed.
        train: (material, seed) -> editor.
        group: `top` rows get all seeds; `ablation` rows come last.
        budget: Names of the budget's numbers that the training depends on, beside the training set's.
    """

    name: str
    train: Callable[[Material, int], Editor]
    group: str = "baseline"
    budget: tuple[str, ...] = ()


class _MapEditor(EditorBase):
    kind = "bench_map_editor"

    def __init__(
        self, flow: PrincipalFlow, edit_map: EditMap, semantic: SemanticEncoder, digest: str
    ) -> None:
        super().__init__(semantic, digest, flow.rows, flow.dim)
        self.flow, self.map = flow.eval().requires_grad_(False), edit_map.eval().requires_grad_(False)

    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        self.require(w_plus, s)
        return Prepared(w_plus, s, w_plus, w_plus, 0)

    def move(self, prepared: Prepared, s_after: Tensor) -> tuple[Tensor, int]:
        with torch.no_grad():
            return self.map(self.flow, prepared.w_plus, features(prepared.s), features(s_after)), 2


class Witness:
    """Looks at renderings for the training of the edit map: labeller and SFace."""

    def __init__(self, material: Material) -> None:
        self.material = material
        networks = material.networks
        self.recognizer = CropRecognizer(networks.identity, networks.bundle.template_scale)

    def describe(self, rows: Tensor) -> Tensor:
        """See `map_training.Witness`."""
        pictures = self.material.training.images[rows].permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(self.recognizer.embed(pictures))

    def look(self, w_plus: Tensor) -> tuple[Tensor, Tensor]:
        """See `map_training.Witness`."""
        networks = self.material.networks
        shown = networks.render(w_plus)
        scores = networks.scores(shown)[:, self.material.columns]
        return scores, torch.from_numpy(self.recognizer.embed(to_uint8(shown)))


def _labeller(material: Material) -> Any:
    return material.networks.labeller.only(material.options.attributes)


def _scores(material: Material) -> Tensor:
    return material.training.of(material.columns)


def _encoder(material: Material) -> str:
    return material.networks.digest("encoder")


def _linear(project: bool) -> Callable[[Material, int], Editor]:
    def train(material: Material, seed: int) -> Editor:
        codes, scores = material.training.codes, _scores(material)
        if seed:  # there is nothing random in it: another seed is another draw of the training people
            rows = torch.randint(len(codes), (len(codes),), generator=torch.Generator().manual_seed(seed))
            codes, scores = codes[rows], scores[rows]
        directions = fit_linear(codes, scores, kind="logistic", project=project)
        return LinearEditor(directions, SemanticEncoder(_labeller(material)), _encoder(material))

    return train


def _first_generation(material: Material, seed: int) -> Editor:
    steps = material.options.budget.first_steps
    config = TrainingConfig(seed=seed, **({"steps": steps} if steps else {}))
    data = material.training
    trained = train_editor(
        data.codes,
        data.images,
        _scores(material),
        material.networks.generator,
        _labeller(material),
        config,
        progress=_said(material, "first generation"),
    )
    return FlowEditor(trained.flow, trained.semantic_encoder, _encoder(material))


def _said(material: Material, what: str) -> Callable[[int, int, dict[str, float]], None]:
    def say(done: int, total: int, losses: dict[str, float]) -> None:
        if done % max(total // 5, 1) == 0:
            said = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            material.say(f"{what}: step {done} of {total}: {said}")

    return say


def principal_flow(material: Material, seed: int) -> PrincipalFlow:
    """The flow that map and corrected edit share; kept."""
    steps = material.options.budget.flow_steps
    path = _place(material, "flow", seed, ("flow_steps",)).with_suffix(".pt")
    codes, scores = material.training.codes, _scores(material)
    flow = PrincipalFlow(codes.shape[1], codes.shape[2], scores.shape[1], PrincipalConfig())
    if path.is_file():
        flow.load_state_dict(torch.load(path, weights_only=True))
        return flow.eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = PrincipalFlow(codes.shape[1], codes.shape[2], scores.shape[1], PrincipalConfig())
    flow.fit(survey(TensorSource(codes, scores)))
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), lr=_FLOW_RATE)
    say = _said(material, "principal flow")
    with torch.enable_grad():
        for step in range(steps):
            rows = torch.randint(len(codes), (_FLOW_BATCH,), generator=rng)
            s = scores[rows]
            s = s + 0.5 * _FLOW_NOISE * torch.randn(s.shape, generator=rng)
            noise = torch.randn(len(rows), len(flow.spread), generator=rng)
            loss = flow.matching(codes[rows], s, noise, torch.rand(len(rows), generator=rng))
            rise = min((step + 1) / 20, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = _FLOW_RATE * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            say(step + 1, steps, {"matching": float(loss.detach())})
    flow.eval().requires_grad_(False)
    _write(path, lambda scratch: torch.save(flow.state_dict(), scratch))
    return flow


def _principal(material: Material, seed: int) -> Editor:
    config = EditConfig(solver=PrincipalConfig().solver)
    flow = principal_flow(material, seed)
    return FlowEditor(flow, SemanticEncoder(_labeller(material)), _encoder(material), config)  # type: ignore[arg-type]


def _map(**changes: Any) -> Callable[[Material, int], Editor]:
    def train(material: Material, seed: int) -> Editor:
        config = EditMapConfig(**changes)
        path = _place(material, f"map {changes}", seed, ("flow_steps",)).with_suffix(".pt")
        flow, data = principal_flow(material, seed), material.training
        training = MapTraining(
            flow,
            data.codes,
            _scores(material),
            Witness(material),
            config,
            material.options.budget.flow_steps,
            seed,
        )
        if path.is_file():
            training.map.load_state_dict(torch.load(path, weights_only=True))
        else:
            said = [""]

            def after(losses: dict[str, float]) -> None:
                stage, done = training.place()
                if stage != said[0] or done == training.lengths[stage] - 1:
                    numbers = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
                    material.say(f"edit map: {stage} {done} of {training.lengths[stage]}: {numbers}")
                    said[0] = stage

            training.run(after)
            _write(path, lambda scratch: torch.save(training.map.state_dict(), scratch))
        semantic = SemanticEncoder(_labeller(material))
        return _MapEditor(flow, training.map, semantic, _encoder(material))

    return train


ROWS: tuple[Row, ...] = (
    Row("linear direction", _linear(project=False)),
    Row("linear, projected", _linear(project=True), "top"),
    Row("first generation", _first_generation, "baseline", ("first_steps",)),
    Row("ours: flow", _principal, "ours", ("flow_steps",)),
    Row("ours: edit map", _map(), "top", ("flow_steps",)),
    Row("map without aim", _map(aim=0.0), "ablation", ("flow_steps",)),
    Row("map without hold", _map(hold=0.0), "ablation", ("flow_steps",)),
    Row("map without identity", _map(identity=0.0), "ablation", ("flow_steps",)),
    Row("map without kept", _map(kept=0.0), "ablation", ("flow_steps",)),
)


def _place(material: Material, name: str, seed: int, budget: tuple[str, ...]) -> Path:
    options = material.options
    numbers = {key: getattr(options.budget, key) for key in ("samples", "real", *budget)}
    if options.data is None:
        numbers["real"] = 0
    networks = {
        kind: material.networks.digest(kind) for kind in ("generator", "encoder", "labeller", "prior")
    }
    parts: dict[str, Any] = {"row": name, "seed": seed, "attributes": options.attributes}
    return options.work / named("editor", networks=networks, **parts, **numbers)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    write(scratch)
    scratch.replace(path)


def trained(row: Row, material: Material, seed: int) -> tuple[Editor, str, float]:
    """The row's editor, from the work folder when it was trained before.

    Returns:
        (editor, digest that names what is measured of it, seconds of this call's training; 0 when kept).
    """
    path = _place(material, row.name, seed, row.budget).with_suffix(".safetensors")
    if path.is_file():
        data = path.read_bytes()
        return load_editor(data), hashlib.sha256(data).hexdigest(), 0.0
    started = time.monotonic()
    editor = row.train(material, seed)
    seconds = time.monotonic() - started
    if isinstance(editor, _MapEditor) or isinstance(getattr(editor, "flow", None), PrincipalFlow):
        return editor, path.stem, seconds
    _write(path, lambda scratch: scratch.write_bytes(editor.to_bytes()) and None)
    return editor, hashlib.sha256(editor.to_bytes()).hexdigest(), seconds


def budget_said(budget: Budget) -> str:
    """The numbers of a budget in one line."""
    return ", ".join(f"{name} {value}" for name, value in budget.model_dump().items())
