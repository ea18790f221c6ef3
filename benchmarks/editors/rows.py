"""The rows of the comparison: who is trained, and how. A trained editor is kept under what it depends on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.editors.material import Material
from benchmarks.editors.options import PUBLISHED_SOLVERS, named
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.edit_map import EditMapConfig
from sdflow_core.method.editing import FlowEditConfig, FlowEditor, LinearEditor, MapEditor, load_editor
from sdflow_core.method.editor import Editor
from sdflow_core.method.linear import fit_linear
from sdflow_core.method.map_training import MapTraining
from sdflow_core.method.paper_objective import ABLATIONS, PUBLISHED, STYLEFLOW, PaperObjective
from sdflow_core.method.paper_training import PaperTrainingConfig, train_paper
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import REFERENCE
from sdflow_core.method.training import TrainingConfig, joint_training, train_editor
from sdflow_core.method.witness import PictureWitness
from sdflow_core.records.errors import ContractError

OURS = "ours: edit map"
_SAID = 10  # times that a training says where it is
# of the published flow, ten times the published one, in favour of rows that are given a fraction of the
# published 10,000 steps: at 1e-4 400 steps end where a quarter of the flips succeed at no strength
_RATE = 1e-3


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: As printed.
        train: (material, seed, where a training keeps its state) -> editor.
        group: `top` rows get all seeds; `ablation` rows come last.
        budget: Names of the budget's numbers that the training depends on, beside the training set's.
    """

    name: str
    train: Callable[[Material, int, StateFile], Editor]
    group: str = "baseline"
    budget: tuple[str, ...] = ()


class StateFile:
    """A training's checkpoint as a file; replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, data: bytes) -> None:
        """See `TrainingCheckpoint`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f".{self.path.name}.part")
        scratch.write_bytes(data)
        scratch.replace(self.path)

    def load(self) -> bytes | None:
        """See `TrainingCheckpoint`."""
        return self.path.read_bytes() if self.path.is_file() else None


def _labeller(material: Material) -> Any:
    return material.networks.labeller.only(material.options.attributes)


def _scores(material: Material) -> Tensor:
    return material.training.of(material.columns)


def _encoder(material: Material) -> str:
    return material.networks.digest("encoder")


def _witness(material: Material) -> PictureWitness:
    return PictureWitness(material.networks, material.training.images, material.columns, threads=1)


def _said(material: Material, what: str) -> Callable[[int, int, dict[str, float]], None]:
    def say(done: int, total: int, losses: dict[str, float]) -> None:
        if done % max(total // _SAID, 1) == 0 or done == total:
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            material.say(f"{what}: step {done} of {total}: {numbers}")

    return say


def _linear(project: bool) -> Callable[[Material, int, StateFile], Editor]:
    def train(material: Material, seed: int, state: StateFile) -> Editor:
        codes, scores = material.training.codes, _scores(material)
        if seed:  # there is nothing random in it: another seed is another draw of the training people
            rows = torch.randint(len(codes), (len(codes),), generator=torch.Generator().manual_seed(seed))
            codes, scores = codes[rows], scores[rows]
        directions = fit_linear(codes, scores, kind="logistic", project=project)
        return LinearEditor(directions, SemanticEncoder(_labeller(material)), _encoder(material))

    return train


def _train(material: Material, config: TrainingConfig, state: StateFile, what: str) -> Editor:
    data = material.training
    trained = train_editor(
        data.codes,
        data.images,
        _scores(material),
        material.networks.generator,
        _labeller(material),
        config,
        state,
        _said(material, what),
        witness=_witness(material),
    )
    return trained.editor(_encoder(material))


def _first_generation(material: Material, seed: int, state: StateFile) -> Editor:
    changes = {"seed": seed}
    config = joint_training(material.options.budget.first_steps).model_copy(update=changes)
    return _train(material, config, state, "first generation")


def _ours(material: Material, seed: int, state: StateFile) -> Editor:
    config = TrainingConfig(steps=material.options.budget.flow_steps, seed=seed)
    return _train(material, config, state, "ours")


def _our_flow(material: Material, seed: int, state: StateFile) -> Editor:
    """The flow of the same training, editing by itself."""
    flow = our_map(material, seed).flow
    config = FlowEditConfig(solver=flow.config.solver)
    return FlowEditor(flow, SemanticEncoder(_labeller(material)), _encoder(material), config)


def our_map(material: Material, seed: int) -> MapEditor:
    """The product's editor of this seed.

    Raises:
        ContractError: The default training gave another kind of editor.
    """
    found = trained(next(row for row in ROWS if row.name == OURS), material, seed).editor
    if not isinstance(found, MapEditor):
        raise ContractError("the product's editor", expected=MapEditor.kind, found=type(found).__name__)
    return found


def _map_without(term: str) -> Callable[[Material, int, StateFile], Editor]:
    def train(material: Material, seed: int, state: StateFile) -> Editor:
        ours = our_map(material, seed)
        flow: PrincipalFlow = ours.flow
        # on the same codes as the row it is compared with
        found = survey(TensorSource(material.training.codes, _scores(material)))
        training = MapTraining(
            flow,
            found.sample_codes,
            found.sample_scores,
            _witness(material),
            EditMapConfig.model_validate({term: 0.0}),
            material.options.budget.flow_steps,
            seed,
            stride=found.stride,
        )
        say = _said(material, f"map without {term}")
        learned = training.run(lambda losses: say(training.step, training.total, losses))
        return MapEditor(flow, learned, ours.semantic_encoder, _encoder(material))

    return train


def _published(objective: PaperObjective, what: str) -> Callable[[Material, int, StateFile], Editor]:
    def train(material: Material, seed: int, state: StateFile) -> Editor:
        budget = material.options.budget
        config = PaperTrainingConfig(
            objective=objective,
            steps=budget.published_steps if objective.edits else budget.frozen_steps,
            learning_rate=_RATE,
            learning_rate_semantic=_RATE / 10,  # at the flow's rate it forgets what it was copied from
            solver=PUBLISHED_SOLVERS[budget.published_solver],
            checkpoint_every=25,
        )
        flow, semantic = train_paper(
            material.training.codes,
            _scores(material),
            material.networks.generator,
            _labeller(material),
            config,
            seed,
            _said(material, what),
            state,
            material.training.images,
        )
        # edits as published: there and back by the reference solver, the round trip's error left in
        return FlowEditor(
            flow, semantic, _encoder(material), FlowEditConfig(solver=REFERENCE, corrected=False)
        )

    return train


_PAPER = ("published_steps", "published_solver")
_FROZEN = ("frozen_steps", "published_solver")
ROWS: tuple[Row, ...] = (
    Row("linear direction", _linear(project=False)),
    Row("linear, projected", _linear(project=True), "top"),
    Row("frozen scores", _published(STYLEFLOW, "frozen scores"), "baseline", _FROZEN),
    Row("published", _published(PUBLISHED, "published"), "top", _PAPER),
    Row("first generation", _first_generation, "baseline", ("first_steps",)),
    Row("ours: flow", _our_flow, "ours", ("flow_steps",)),
    Row(OURS, _ours, "top", ("flow_steps",)),
    *(
        Row(f"map without {term}", _map_without(term), "ablation", ("flow_steps",))
        for term in ("aim", "hold", "beside", "identity", "kept")
    ),
    *(
        Row(f"published, {name}", _published(ABLATIONS[name], name), "ablation", _PAPER)
        for name in ("no consistency", "no closeness", "frozen semantics")
    ),
)


@dataclass(frozen=True)
class Trained:
    """A row's editor.

    Attributes:
        editor: Ready for use.
        digest: Of its file: names what is measured of it.
        seconds: Of its training, as it was measured when it was trained.
    """

    editor: Editor
    digest: str
    seconds: float


def trained(row: Row, material: Material, seed: int) -> Trained:
    """The row's editor, from the work folder when it was trained before."""
    options = material.options
    numbers = {key: getattr(options.budget, key) for key in ("samples", "real", *row.budget)}
    if options.data is None:
        numbers["real"] = 0
    networks = {
        kind: material.networks.digest(kind) for kind in ("generator", "encoder", "labeller", "prior")
    }
    parts: dict[str, Any] = {"row": row.name, "seed": seed, "attributes": options.attributes}
    path = options.work / f"{named('editor', networks=networks, **parts, **numbers)}.safetensors"
    kept, state = StateFile(path), StateFile(path.with_suffix(".state"))
    took = StateFile(path.with_suffix(".seconds"))
    data = kept.load()
    if data is None:
        before = float((took.load() or b"0").decode())
        started = time.monotonic()
        data = row.train(material, seed, state).to_bytes()
        took.save(f"{before + time.monotonic() - started:.1f}".encode())
        kept.save(data)
        state.path.unlink(missing_ok=True)
    return Trained(load_editor(data), hashlib.sha256(data).hexdigest(), float((took.load() or b"0").decode()))
