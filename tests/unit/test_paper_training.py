"""The published objective: switches that switch, resumption, refusals."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.editing import FlowEditConfig, FlowEditor
from sdflow_core.method.paper import PaperFlowConfig
from sdflow_core.method.paper_objective import ABLATIONS, PUBLISHED, STYLEFLOW
from sdflow_core.method.paper_training import PaperTrainer, PaperTrainingConfig, train_paper
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import REFERENCE, SolverConfig
from sdflow_core.records.errors import ContractError

COARSE = SolverConfig(method="midpoint", steps=2)


class Slot:
    """A checkpoint in memory."""

    data: bytes | None = None

    def save(self, data: bytes) -> None:
        self.data = data

    def load(self) -> bytes | None:
        return self.data


class World:
    """Tiny networks of the real classes, and codes with scores."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = GeneratorConfig(resolution=16, style_dim=4, channel_base=64, channel_max=4, mapping_layers=0)
        self.generator = Generator(config).eval()
        self.labeller = Labeller(LabellerConfig(attributes=("a", "b"), resolution=16, channels=(4, 4))).eval()
        # numbers of a row go together: there is something to learn
        self.codes = 2.0 + 0.5 * torch.randn(40, 6, 1) + 0.1 * torch.randn(40, 6, 4)
        with torch.no_grad():
            read = self.labeller.scores(self.generator.synthesize(self.codes).clamp(-1, 1))
        # an untrained labeller says nearly the same of all: half of the rows shall have each attribute
        self.scores = (read - read.quantile(0.5, dim=0) + 0.5).clamp(0.0, 1.0)

    def inputs(self) -> tuple[Tensor, Tensor, nn.Module, nn.Module]:
        return self.codes, self.scores, self.generator, self.labeller


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def _config(**changes: Any) -> PaperTrainingConfig:
    base: dict[str, Any] = {
        "flow": PaperFlowConfig(width=8, depth=3),
        "steps": 4,
        "batch": 6,
        "solver": COARSE,
        "checkpoint_every": 2,
    }
    return PaperTrainingConfig(**{**base, **changes})


def test_defaults_are_the_published_numbers() -> None:
    config = PaperTrainingConfig()
    assert (config.steps, config.batch, config.learning_rate) == (10_000, 8, 1e-4)
    assert config.solver == REFERENCE and REFERENCE.rtol == REFERENCE.atol == 1e-5
    assert config.objective == PUBLISHED and config.divergence == "hutchinson"
    goal = PUBLISHED
    assert (goal.distillation, goal.density, goal.consistency, goal.closeness) == (1.0, 1.0, 1.0, 1.0)


def test_fitted_statistics_keep_the_first_edits_near(world: World) -> None:
    """Why they are fitted: there by one statistic and back by another is no way back."""
    far: list[float] = []
    for fitted in (True, False):
        world.generator.requires_grad_(False)
        trainer = PaperTrainer(*world.inputs(), _config(fit_statistics=fitted, batch=16), 0)
        far.append(float(trainer.losses()["closeness"].detach()))
    assert far[0] < 0.2 * far[1]


def _terms_and_gradients(world: World, name: str) -> tuple[set[str], float, float]:
    """Terms of the first step, and the gradient norms of flow and semantic encoder."""
    trainer = PaperTrainer(*world.inputs(), _config(objective=ABLATIONS[name]), 0)
    world.generator.requires_grad_(False)
    terms = trainer.losses()
    torch.stack(list(terms.values())).sum().backward()
    norms = [
        sum(float(p.grad.square().sum()) for p in part.parameters() if p.grad is not None)
        for part in (trainer.flow, trainer.semantic)
    ]
    return set(terms), norms[0], norms[1]


def test_each_switch_changes_terms_and_gradients(world: World) -> None:
    every = {"distillation", "density", "consistency", "closeness"}
    terms, flow, semantic = _terms_and_gradients(world, "published")
    assert terms == every and flow > 0 and semantic > 0
    for name, missing in (
        ("no consistency", "consistency"),
        ("no closeness", "closeness"),
        ("no density", "density"),
        ("no distillation", "distillation"),
    ):
        found, other_flow, other_semantic = _terms_and_gradients(world, name)
        assert found == every - {missing}
        assert other_semantic != semantic and (other_flow != flow) == (missing != "distillation")
    found, other, nothing = _terms_and_gradients(world, "frozen semantics")
    assert found == every - {"distillation"} and nothing == 0 and other > 0
    found, other, nothing = _terms_and_gradients(world, "styleflow")
    assert found == {"density"} and nothing == 0 and other > 0


def test_joint_learning_reaches_the_semantic_encoder_through_the_density_alone(world: World) -> None:
    goal = PUBLISHED.model_copy(update={"distillation": 0.0, "consistency": 0.0, "closeness": 0.0})
    trainer = PaperTrainer(*world.inputs(), _config(objective=goal), 0)
    trainer.losses()["density"].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in trainer.semantic.parameters())


def test_pictures_at_hand_and_rarer_edits_save_renderings(world: World) -> None:
    with torch.no_grad():
        rendered = world.generator.synthesize(world.codes).clamp(-1, 1)
    images = ((rendered + 1) * 127.5).round().to(torch.uint8)
    at_hand = PaperTrainer(*world.inputs(), _config(edit_every=2), 0, images)
    rendering = PaperTrainer(*world.inputs(), _config(edit_every=2), 0)
    first, wanted = at_hand.advance(), rendering.advance()
    assert set(first) == set(wanted) == {"distillation", "density", "consistency", "closeness"}
    # the pictures differ by rounding to 8 bit only
    assert first["density"] == pytest.approx(wanted["density"], abs=1e-3)
    assert set(at_hand.advance()) == {"distillation", "density"}
    assert at_hand.identity != rendering.identity
    with pytest.raises(ContractError, match="images to train on"):
        train_paper(*world.inputs(), _config(), images=images.float())


def test_thirty_steps_lower_the_loss(world: World) -> None:
    history: list[dict[str, float]] = []
    config = _config(steps=30, batch=16, learning_rate=1e-2)
    flow, semantic = train_paper(
        *world.inputs(), config, progress=lambda done, steps, terms: history.append(terms)
    )
    first, last = (sum(sum(h.values()) for h in part) / 5 for part in (history[:5], history[-5:]))
    assert len(history) == 30 and last < first - 0.2
    assert not flow.training and not any(p.requires_grad for p in flow.parameters())
    # what it gives is what the flow editor takes
    editor = FlowEditor(flow, semantic, "0" * 64, FlowEditConfig(solver=COARSE))
    prepared = editor.prepare(world.codes[:3], world.scores[:3])
    moved, _ = editor.move(prepared, 1 - world.scores[:3])
    same, _ = editor.move(prepared, world.scores[:3])
    assert torch.equal(same, world.codes[:3]) and not torch.allclose(moved, same)


def test_frozen_training_changes_neither_generator_nor_classifier(world: World) -> None:
    before = copy.deepcopy((world.generator.state_dict(), world.labeller.state_dict()))
    world.generator.requires_grad_(True)
    _, semantic = train_paper(*world.inputs(), _config(objective=STYLEFLOW))
    for net, state in zip((world.generator, world.labeller), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in world.generator.parameters())
    assert isinstance(semantic, SemanticEncoder)
    assert all(torch.equal(v, before[1][n]) for n, v in semantic.network.state_dict().items())


def test_resumed_is_uninterrupted(world: World) -> None:
    whole = train_paper(*world.inputs(), _config(steps=5), seed=3)

    class Stop(Exception):
        pass

    def stop(done: int, steps: int, terms: dict[str, float]) -> None:
        if done == 3:
            raise Stop

    slot = Slot()
    with pytest.raises(Stop):
        train_paper(*world.inputs(), _config(steps=5), seed=3, progress=stop, checkpoint=slot)
    assert slot.data is not None and torch.load(io.BytesIO(slot.data), weights_only=True)["step"] == 2
    resumed = train_paper(*world.inputs(), _config(steps=5), seed=3, checkpoint=slot)
    for a, b in zip(whole, resumed, strict=True):
        assert all(torch.equal(v, b.state_dict()[n]) for n, v in a.state_dict().items())
    with pytest.raises(ContractError, match="another training"):
        train_paper(*world.inputs(), _config(steps=5), seed=4, checkpoint=slot)
    slot.data = slot.data[:-100]
    with pytest.raises(ContractError, match="unreadable"):
        train_paper(*world.inputs(), _config(steps=5), seed=3, checkpoint=slot)


def test_divergence_stops_and_keeps_the_last_good_checkpoint(world: World) -> None:
    slot = Slot()
    with pytest.raises(ContractError, match="training diverged"):
        train_paper(
            *world.inputs(), _config(steps=60, learning_rate=1e4, checkpoint_every=1), checkpoint=slot
        )
    assert slot.data is not None
    saved = torch.load(io.BytesIO(slot.data), weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in saved["flow"].values())


@pytest.mark.parametrize(
    "what", ["nan code", "score outside", "other attributes", "less than a batch", "one class", "one code"]
)
def test_bad_input_is_named(world: World, what: str) -> None:
    codes, scores, generator, labeller = world.inputs()
    codes, scores = codes.clone(), scores.clone()
    said = {
        "nan code": "row 4",
        "score outside": "row 2, attribute b",
        "other attributes": "scores to train on",
        "less than a batch": "at least 6 rows",
        "one class": "labels of one class only.*b: 0 with",
        "one code": "codes that differ",
    }
    if what == "nan code":
        codes[4, 1, 1] = math.nan
    elif what == "score outside":
        scores[2, 1] = 1.5
    elif what == "other attributes":
        scores = scores[:, :1]
    elif what == "one class":
        scores[:, 1] = 0.2
    elif what == "one code":
        codes[:] = codes[:1].clone()
    else:
        codes, scores = codes[:5], scores[:5]
    with pytest.raises(ContractError, match=said[what]):
        train_paper(codes, scores, generator, labeller, _config())
