"""The default training: all stages resumable, a function of inputs and configuration, bad input in words."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.faces.labeller import Labeller
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.condition import attributes_of, features
from sdflow_core.method.edit_map import EditMapConfig
from sdflow_core.method.editing import FlowEditor, load_editor
from sdflow_core.method.flow import FlowConfig
from sdflow_core.method.map_editor import MapEditor
from sdflow_core.method.objectives import ObjectiveConfig
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.training import (
    EarlyStopping,
    TrainingConfig,
    joint_training,
    paper_training,
    train_on_source,
)
from sdflow_core.records.errors import ContractError
from tests.taught import (
    PEOPLE,
    SMALL,
    Slot,
    assert_same,
    people,
    small_labeller,
    train,
)


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    return small_labeller()


class Killed(Exception):
    pass


@pytest.mark.parametrize("early", [None, EarlyStopping(held_out=0.2, every=1, patience=2)])
def test_killed_in_any_stage_and_resumed_equals_uninterrupted(
    labeller: Labeller, early: EarlyStopping | None
) -> None:
    told: list[tuple[int, int]] = []
    more = {"early_stopping": early, "learning_rate": 0.5 if early else 1e-3}
    whole = train(labeller, None, lambda step, total, _: told.append((step, total)), **more)
    assert [step for step, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == told[-1][1] == len(whole.history)
    if early is None:
        assert len({total for _, total in told}) == 1  # known from the start
    else:
        assert told[-1][1] < told[0][1]  # stopped early
    for killed_after in (1, 4, 7, 10, 15, 19, len(told) - 1):
        slot = Slot()

        def kill(step: int, total: int, losses: dict[str, float], last: int = killed_after) -> None:
            if step == last:
                raise Killed

        with pytest.raises(Killed):
            train(labeller, slot, kill, **more)
        torch.manual_seed(killed_after)  # what the process did in between must not matter
        assert_same(whole, train(labeller, slot, **more))


def test_a_finished_training_is_read_from_its_checkpoint(labeller: Labeller) -> None:
    slot = Slot()
    first = train(labeller, slot)
    assert_same(first, train(labeller, slot, lambda *_: pytest.fail("nothing was left to do")))


def test_all_stages_are_in_the_history_and_in_the_final_losses(labeller: Labeller) -> None:
    trained = train(labeller)
    assert {"matching", "reader_attributes", "reader_identity", "map_aim", "map_kept"} <= set(
        trained.final_losses()
    )
    matching = [losses["matching"] for losses in trained.history if "matching" in losses]
    assert len(matching) == 6
    assert trained.final_losses(2)["matching"] == pytest.approx(sum(matching[-2:]) / 2)


def test_the_semantic_encoder_is_the_labeller(labeller: Labeller) -> None:
    trained = train(labeller)
    own, start = trained.semantic_encoder.network.state_dict(), labeller.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in own.items())


def test_the_editor_edits_by_the_map_and_its_file_gives_the_same_edits(labeller: Labeller) -> None:
    trained = train(labeller)
    editor = trained.editor("enc")
    assert isinstance(editor, MapEditor)
    codes, scores = people(8)
    wanted = scores.clone()
    wanted[:4, 0] = 1 - wanted[:4, 0]
    edited = editor.edit(codes, None, scores, wanted)
    assert torch.equal(edited.w_plus[4:], codes[4:])
    assert (edited.delta_norm[:4] > 0).all() and edited.nfe == 2
    prepared = editor.prepare(codes, scores)
    moved, _ = editor.move(prepared, scores)
    assert torch.equal(moved, codes)  # by construction, not by the protocol's check
    data = editor.to_bytes()
    again = load_editor(data)
    assert (
        isinstance(again, MapEditor) and again.to_bytes() == data == train(labeller).editor("enc").to_bytes()
    )
    assert torch.equal(again.edit(codes, None, scores, wanted).w_plus, edited.w_plus)
    z = again.base(codes, scores)
    assert (again.flow.from_base(z, scores) - codes).abs().max() < 1e-3


def test_beyond_its_reach_a_map_goes_straight_on(labeller: Labeller) -> None:
    editor = train(labeller).editor("encoder")
    assert isinstance(editor, MapEditor)
    codes, scores = people()
    w, s = codes[:6], scores[:6].clamp(0.1, 0.4)
    ready, reach = editor.prepare(w, s), editor.edit_map.config.reach

    def asked(phi: float) -> Tensor:
        after = s.clone()
        after[:, 0] = attributes_of(torch.tensor(phi))
        return editor.move(ready, after)[0] - w

    at = asked(reach)
    assert torch.allclose(asked(reach + 1e-4), at, atol=1e-3)
    far, before = reach + 2.0, features(s[:, 0])
    share = (far - before) / (reach - before)
    assert torch.allclose(asked(far), share[:, None, None] * at, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(asked(far), at, atol=1e-3)


def test_without_a_map_the_flow_edits(labeller: Labeller) -> None:
    trained = train(labeller, edit_map=None)
    assert trained.edit_map is None and len(trained.history) == 6
    editor = trained.editor("enc")
    assert isinstance(editor, FlowEditor) and isinstance(editor.flow, PrincipalFlow)
    assert editor.config.solver == trained.flow.config.solver
    assert load_editor(editor.to_bytes()).to_bytes() == editor.to_bytes()


def test_matching_falls(labeller: Labeller) -> None:
    codes, scores = people(400)
    codes = codes + 0.7 * (codes[:, :, :1] ** 2 - 1)  # no Gaussian, so that something is left to learn
    history = train(
        labeller, codes=codes, scores=scores, steps=300, batch=100, edit_map=None, learning_rate=5e-3
    ).history
    early, late = (sum(h["matching"] for h in part) for part in (history[:50], history[-50:]))
    assert late < 0.97 * early


def test_bf16_is_another_training_that_also_works(labeller: Labeller) -> None:
    plain, half = (train(labeller, precision=kind, edit_map=None) for kind in ("fp32", "bf16"))
    assert plain.history != half.history
    for a, b in zip(plain.history, half.history, strict=True):
        assert a["matching"] == pytest.approx(b["matching"], rel=0.05)


def test_early_stopping_keeps_the_best_state_and_be_it_the_closed_form(labeller: Labeller) -> None:
    early = EarlyStopping(held_out=0.2, every=1, patience=3)
    wild: dict[str, Any] = {"early_stopping": early, "steps": 60, "edit_map": None, "warm_up_steps": 0}
    trained = train(labeller, learning_rate=1.0, **wild)
    assert len(trained.history) == early.patience  # no look was better than that before the first step
    assert isinstance(trained.flow, PrincipalFlow) and not trained.flow.field.last.weight.any()
    assert_same(trained, train(labeller, learning_rate=1.0, **wild))

    codes, scores = people(400)
    codes = codes + 0.7 * (codes[:, :, :1] ** 2 - 1)  # something to learn
    better = train(labeller, codes=codes, scores=scores, learning_rate=3e-3, **wild)
    seen = [losses["held_out"] for losses in better.history]
    assert len(seen) > early.patience and isinstance(better.flow, PrincipalFlow)
    assert better.flow.field.last.weight.any()


def test_a_checkpoint_stays_small_and_drops_what_is_finished(labeller: Labeller) -> None:
    slot = Slot()
    train(labeller, slot)
    assert slot.data is not None
    saved = torch.load(io.BytesIO(slot.data), weights_only=True)
    assert saved["optimizer"] is None and saved["map"]["step"] > 0
    assert "semantic" not in saved and "codes" not in saved


@pytest.mark.parametrize("change", ["config", "codes", "scores", "labeller", "witness"])
def test_a_checkpoint_of_another_training_is_refused(labeller: Labeller, change: str) -> None:
    slot = Slot()
    train(labeller, slot)
    codes, scores = people()
    changes: dict[str, Any] = {
        "config": {"s_noise": 0.2},
        "codes": {"codes": codes * 0.5},
        "scores": {"scores": 1 - scores},
        "labeller": {},
        "witness": {"witness": None},
    }[change]
    if change == "labeller":
        torch.manual_seed(5)
        labeller = Labeller(labeller.config).eval()
    with pytest.raises(ContractError, match="checkpoint of another training"):
        train(labeller, slot, **changes)


def test_divergence_in_the_flow_keeps_the_last_good_checkpoint(
    labeller: Labeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = PrincipalFlow.matching
    calls: list[int] = []

    def matching(self: PrincipalFlow, *values: Tensor) -> Tensor:
        calls.append(1)
        return inner(self, *values) * (float("nan") if len(calls) == 4 else 1.0)

    slot = Slot()
    with monkeypatch.context() as patch:
        patch.setattr(PrincipalFlow, "matching", matching)
        with pytest.raises(ContractError, match="diverged.*step 3"):
            train(labeller, slot)
    assert slot.data is not None
    saved = torch.load(io.BytesIO(slot.data), weights_only=True)
    assert saved["step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["flow"].values())
    assert_same(train(labeller, slot), train(labeller))


def test_bad_material_is_refused_naming_row_or_field(labeller: Labeller) -> None:
    codes, scores = people()
    broken, outside = codes.clone(), scores.clone()
    broken[17, 1, 2], outside[5, 1] = float("inf"), 1.5
    one_class = scores.clone()
    one_class[:, 1] = 0.5 + 0.4 * scores[:, 1]
    for changes, words in [
        ({"codes": broken}, "row 17"),
        ({"codes": codes[:1].expand_as(codes)}, "same code"),
        ({"codes": codes.flatten(1)}, "codes to train on"),
        ({"scores": outside}, "row 5, attribute b"),
        ({"scores": scores * float("nan")}, "row 0, attribute a"),
        ({"scores": scores[:, :1]}, "scores to train on"),
        ({"scores": one_class}, f"b: {PEOPLE} with, 0 without"),
        ({"batch": PEOPLE + 1}, "fewer rows than a batch.*121 rows"),
    ]:
        with pytest.raises(ContractError, match=words):
            train(labeller, **changes)


def test_a_source_of_codes_is_held_to_the_same(labeller: Labeller) -> None:
    codes, scores = people()
    broken = codes.clone()
    broken[17] = float("nan")
    config = TrainingConfig(**SMALL)
    for source, words in [
        (TensorSource(broken, scores), "row 17"),
        (TensorSource(torch.ones_like(codes), scores), "same code"),
        (TensorSource(codes, scores[:, :1]), "source of codes"),
        (TensorSource(codes, scores * 0.4), "one class only"),
        (TensorSource(codes[:10], scores[:10]), "fewer rows"),
    ]:
        with pytest.raises(ContractError, match=words):
            train_on_source(source, labeller, config)
    with pytest.raises(ContractError, match="principal flow"):
        train_on_source(TensorSource(codes, scores), labeller, joint_training(2))


def test_an_editor_of_other_width_layers_or_attributes_is_refused(labeller: Labeller) -> None:
    editor = train(labeller).editor("enc")
    assert isinstance(editor, MapEditor)
    for name, changes in [
        ("width", {"width": 24}),
        ("layers", {"blocks": 2}),
        ("directions", {"directions": 5}),
    ]:
        other = train(labeller).editor("enc")
        assert isinstance(other, MapEditor)
        other.flow.config = other.flow.config.model_copy(update=changes)
        with pytest.raises(ContractError, match="weights of the flow do not fit"):
            load_editor(other.to_bytes())
        assert name
    editor.attributes = ("a", "c")
    with pytest.raises(ContractError, match="attributes"):
        load_editor(editor.to_bytes())


def test_configurations_say_what_belongs_together() -> None:
    assert TrainingConfig().flow.kind == "principal" and TrainingConfig().edit_map is not None
    for old in (joint_training(), paper_training()):
        assert old.edit_map is None
        assert TrainingConfig.model_validate(old.model_dump(mode="json")) == old
    assert TrainingConfig.model_validate(TrainingConfig().model_dump(mode="json")) == TrainingConfig()
    for wrong in [
        {"flow": FlowConfig(), "edit_map": EditMapConfig()},
        {"flow": FlowConfig(), "early_stopping": EarlyStopping()},
        {"objective": ObjectiveConfig(consistency=0)},
        {"joint": False},
        {"flow": {"kind": "bogus"}},
    ]:
        with pytest.raises(ValidationError):
            TrainingConfig.model_validate(wrong)


def test_the_product_s_witness_sees_each_picture_by_itself() -> None:
    """On stand-ins: what is asked of which network, in which order, for which columns."""
    from sdflow_core.method.witness import PictureWitness

    torch.manual_seed(0)
    generator = Generator(
        GeneratorConfig(resolution=16, style_dim=4, channel_base=64, channel_max=4, mapping_layers=0)
    ).eval()

    class Networks:
        def __init__(self) -> None:
            self.calls = {"identity": 0}

        class bundle:
            identity, template_scale = "digest", 0.7
            attributes = tuple("abcdef")

        @staticmethod
        def render(w_plus: Tensor) -> Tensor:
            with torch.no_grad():
                return generator.synthesize(w_plus).clamp(-1, 1)

        @staticmethod
        def scores(images: Tensor) -> Tensor:
            mean = images.mean((2, 3))
            return torch.cat([mean, -mean], 1).sigmoid()

        class identity:
            @staticmethod
            def embed(images: Any, points: Any) -> Any:
                assert points.shape == (len(images), 5, 2)
                return images.reshape(len(images), -1)[:, :6].astype("float32")

    networks: Any = Networks()
    codes = torch.randn(5, 6, 4)
    witness = PictureWitness(networks, None, [4, 0])
    scores, known = witness.look(codes)
    assert scores.shape == (5, 6) and known is not None and known.shape == (5, 6)
    seen = Networks.scores(Networks.render(codes))
    assert torch.equal(scores, seen[:, [4, 0, 1, 2, 3, 5]])  # those that are edited first
    assert witness.further == 4
    assert torch.equal(witness.beside(torch.arange(5), codes), seen[:, [1, 2, 3, 5]])
    described = witness.describe(torch.arange(5), codes)
    assert torch.equal(described, known)
    assert torch.equal(witness.describe(torch.tensor([3]), codes[3:4])[0], known[3])
    pictures = ((Networks.render(codes) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(
        PictureWitness(networks, pictures, [0]).describe(torch.tensor([3, 1]), codes), known[[3, 1]]
    )
    read = PictureWitness(networks, pictures, [4, 0]).beside(torch.tensor([3, 1]), codes)
    assert torch.allclose(read, seen[[3, 1]][:, [1, 2, 3, 5]], atol=2 / 255)
    Networks.bundle.identity = None  # pyright: ignore
    assert witness.look(codes)[1] is None
