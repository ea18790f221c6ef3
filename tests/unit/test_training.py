"""Training: killed and resumed = uninterrupted, terms switch off for free, divergence stops in words."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.editing import load_editor
from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import FlowConfig
from sdflow_core.method.objectives import ObjectiveConfig
from sdflow_core.method.paper import PaperFlow, PaperFlowConfig
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.method.training import TrainingConfig, paper_training, train_editor
from sdflow_core.records.errors import ContractError

SMALL: dict[str, Any] = {
    "flow": FlowConfig(field=FieldConfig(width=8, mix=4)),
    "steps": 6,
    "batch": 6,
    "image_batch": 4,
    "edit_batch": 2,
    "checkpoint_every": 2,
    "warm_up_steps": 2,
    "precision": "fp32",
}


class Slot:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.saves = 0

    def save(self, data: bytes) -> None:
        self.data, self.saves = data, self.saves + 1

    def load(self) -> bytes | None:
        return self.data


class World:
    """Tiny networks of the real classes, and codes with scores."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = GeneratorConfig(resolution=16, style_dim=4, channel_base=64, channel_max=4, mapping_layers=0)
        self.generator = Generator(config).eval()
        self.labeller = Labeller(LabellerConfig(attributes=("a", "b"), resolution=16, channels=(4, 4))).eval()
        self.codes = torch.randn(20, 6, 4)
        with torch.no_grad():
            images = self.generator.synthesize(self.codes)
            # both classes of each attribute, as an untrained labeller would not see them
            middle = self.labeller.logits(images).median(0).values
            self.labeller.head.bias -= middle + 1e-4
            self.scores = self.labeller.scores(images)
        self.images = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def train(
        self, config: TrainingConfig, slot: Slot | None = None, progress: Any = None, **changes: Any
    ) -> Any:
        inputs = {name: changes.get(name, getattr(self, name)) for name in ("codes", "images", "scores")}
        generator = changes.get("generator", self.generator)
        return train_editor(
            inputs["codes"],
            inputs["images"],
            inputs["scores"],
            generator,
            self.labeller,
            config,
            slot,
            progress,
        )


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def weights(trained: Any) -> dict[str, Tensor]:
    flow = {f"flow.{k}": v for k, v in trained.flow.state_dict().items()}
    return flow | {f"semantic.{k}": v for k, v in trained.semantic_encoder.state_dict().items()}


def assert_same(a: Any, b: Any) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    assert a.history == b.history


class Killed(Exception):
    pass


@pytest.mark.parametrize("density", ["flow_matching", "nll"])
@pytest.mark.parametrize("killed_after", [1, 3, 4])
def test_killed_and_resumed_equals_uninterrupted(world: World, density: str, killed_after: int) -> None:
    config = TrainingConfig(**SMALL, objective=ObjectiveConfig(density_loss=density))  # pyright: ignore
    whole = world.train(config)
    slot = Slot()

    def kill(step: int, total: int, losses: dict[str, float]) -> None:
        if step == killed_after:
            raise Killed

    with pytest.raises(Killed):
        world.train(config, slot, kill)
    torch.manual_seed(12345)  # what the process did in between must not matter
    steps: list[int] = []
    resumed = world.train(config, slot, lambda step, total, losses: steps.append(step))
    assert steps[0] == killed_after // 2 * 2 + 1
    assert_same(whole, resumed)


def test_a_finished_training_is_read_from_its_checkpoint(world: World) -> None:
    config, slot = TrainingConfig(**SMALL), Slot()
    first = world.train(config, slot)
    again = world.train(config, slot, lambda *_: pytest.fail("nothing was left to do"))
    assert_same(first, again)


def test_global_random_state_neither_matters_nor_changes(world: World) -> None:
    config = TrainingConfig(**SMALL)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = world.train(config)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert_same(first, world.train(config))
    other = world.train(config.model_copy(update={"seed": 1}))
    assert not torch.equal(other.flow.field.layers[0].layer.weight, first.flow.field.layers[0].layer.weight)


def test_how_often_it_saves_does_not_change_the_result(world: World) -> None:
    slot = Slot()
    config = TrainingConfig(**SMALL)
    a = world.train(config, slot)
    assert slot.saves == 3
    assert_same(a, world.train(config.model_copy(update={"checkpoint_every": 4}), Slot()))


@pytest.mark.parametrize("change", ["config", "codes", "scores", "images", "generator"])
def test_a_checkpoint_of_another_training_is_refused(world: World, change: str) -> None:
    config, slot = TrainingConfig(**SMALL), Slot()
    world.train(config, slot)
    changes: dict[str, Any] = {}
    if change == "config":
        config = config.model_copy(update={"s_noise": 0.2})
    elif change == "generator":
        changes["generator"] = copy.deepcopy(world.generator)
        with torch.no_grad():
            changes["generator"].const += 1
    elif change == "images":
        changes["images"] = world.images.flip(0)
    else:
        changes[change] = 1 - getattr(world, change)
    with pytest.raises(ContractError, match="checkpoint of another training"):
        world.train(config, slot, **changes)


def test_a_damaged_checkpoint_is_refused(world: World) -> None:
    slot = Slot()
    slot.data = b"not a checkpoint"
    with pytest.raises(ContractError, match="unreadable"):
        world.train(TrainingConfig(**SMALL), slot)


def test_divergence_stops_in_words_and_keeps_the_last_good_checkpoint(world: World) -> None:
    class Poison(nn.Module):
        """Renders well four times, then gives NaN."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = world.generator, 0

        def synthesize(self, w_plus: Tensor) -> Tensor:
            self.calls += 1
            return self.inner.synthesize(w_plus) * (1.0 if self.calls < 3 else float("nan"))

    slot = Slot()
    with pytest.raises(ContractError, match="diverged") as caught:
        world.train(TrainingConfig(**SMALL), slot, generator=Poison())
    assert "step 4" in str(caught.value)
    assert slot.saves == 2 and slot.data is not None
    saved = torch.load(io.BytesIO(slot.data), weights_only=True)
    assert saved["step"] == 4
    assert all(torch.isfinite(value).all() for value in saved["flow"].values())


TERMS = ["distillation", "density", "consistency", "closeness"]


@pytest.mark.parametrize("only", TERMS)
def test_a_weight_of_zero_switches_a_term_off(world: World, only: str) -> None:
    objective = ObjectiveConfig(**{name: float(name == only) for name in TERMS})
    trained = world.train(TrainingConfig(**SMALL, objective=objective))
    assert set().union(*trained.history) == {only}


def test_switched_off_terms_cost_no_network_call(world: World) -> None:
    class Untouchable(nn.Module):
        def synthesize(self, w_plus: Tensor) -> Tensor:
            raise AssertionError("rendered for nothing")

    objective = ObjectiveConfig(distillation=0, consistency=0)
    trained = world.train(TrainingConfig(**SMALL, objective=objective), generator=Untouchable())
    start = world.labeller.state_dict()
    assert all(torch.equal(v, start[k]) for k, v in trained.semantic_encoder.network.state_dict().items())


def test_flow_and_semantic_encoder_learn_generator_and_labeller_do_not(world: World) -> None:
    generator, labeller = (
        copy.deepcopy(world.generator.state_dict()),
        copy.deepcopy(world.labeller.state_dict()),
    )
    trained = world.train(TrainingConfig(**SMALL), generator=world.generator)
    assert all(torch.equal(v, generator[k]) for k, v in world.generator.state_dict().items())
    assert all(torch.equal(v, labeller[k]) for k, v in world.labeller.state_dict().items())
    assert not torch.equal(trained.semantic_encoder.network.head.weight, labeller["head.weight"])
    assert all(p.requires_grad for p in world.generator.parameters())  # given back as it came
    assert not any(
        p.requires_grad for p in [*trained.flow.parameters(), *trained.semantic_encoder.parameters()]
    )


def test_images_are_rendered_when_not_given_and_bf16_works(world: World) -> None:
    config = TrainingConfig(**{**SMALL, "precision": "bf16"})
    assert len(world.train(config, images=None).history) == 6


def test_losses_fall(world: World) -> None:
    changes = {
        "flow": FlowConfig(field=FieldConfig(width=32, mix=4)),
        "steps": 120,
        "batch": 20,
        "image_batch": 8,
    }
    objective = ObjectiveConfig(consistency=0, closeness=0)
    config = TrainingConfig(
        **{**SMALL, **changes},
        objective=objective,
        warm_start=False,
        learning_rate=1e-2,
        learning_rate_semantic=1e-3,
    )
    history = world.train(config).history
    for name in ("density", "distillation"):
        early, late = (sum(h[name] for h in part) for part in (history[:20], history[-20:]))
        assert late < early, name


def test_paper_setting_runs(world: World) -> None:
    fast = SolverConfig(method="dopri5", rtol=1e-2, atol=1e-2)
    config = paper_training(2).model_copy(
        update={"density_solver": fast, "edit_solver": fast, "precision": "fp32"}
    )
    slot = Slot()
    trained = world.train(config, slot)
    assert set(trained.history[-1]) == set(TERMS) and isinstance(trained.flow, PaperFlow)
    assert_same(trained, world.train(config, slot, lambda *_: pytest.fail("nothing was left to do")))
    editor = trained.editor("enc")
    assert load_editor(editor.to_bytes()).to_bytes() == editor.to_bytes()
    with pytest.raises(ValidationError, match="paper"):
        TrainingConfig(flow=PaperFlowConfig())


def test_bad_input_is_refused_in_words(world: World) -> None:
    config = TrainingConfig(**SMALL)
    for change, what in [
        ({"codes": world.codes * float("nan")}, "codes"),
        ({"scores": world.scores[:, :1]}, "scores"),
        ({"scores": world.scores + 1}, "scores"),
        ({"images": world.images.float()}, "images"),
        ({"images": world.images[:5]}, "images"),
    ]:
        with pytest.raises(ContractError, match=what):
            world.train(config, **change)
    with pytest.raises(ValidationError):
        TrainingConfig(batch=8, image_batch=16)
