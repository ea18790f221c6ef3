"""Labeller and judge: missing labels, calibration, files from before it, figures per group."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from cli.cards import print_card
from embedded_models.recipe.write_cards import FIELDS, PREFIXES, card_of, readers_of
from sdflow_core.faces.checkpoint import load_model, read_header, save_model
from sdflow_core.faces.labeller import JudgeNetwork, Labeller, LabellerConfig
from sdflow_core.faces.pretraining.calibration import fit_calibration, held_out
from sdflow_core.faces.pretraining.classifiers import (
    auc,
    calibration_error,
    draw_weights,
    masked_bce,
    predict,
    train_classifier,
)
from sdflow_core.faces.pretraining.figures import (
    age_band,
    group_masks,
    group_table,
    reader_figures,
    reliability,
)
from sdflow_core.records.errors import ContractError

NAN = float("nan")
SMALL = LabellerConfig(attributes=("a", "b"), channels=(4, 8))


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_a_missing_label_teaches_nothing() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    loss = masked_bce(logits, torch.tensor([[1.0, NAN], [NAN, NAN]]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(-torch.tensor(1.0).sigmoid().log()))
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False], [False, False]]
    nothing = masked_bce(logits, torch.full((2, 2), NAN))
    assert float(nothing.detach()) == 0.0


def test_rare_labels_are_drawn_more_often_and_unlabelled_rows_never() -> None:
    scores = np.full((200, 2), 0.1, np.float32)
    scores[:5, 0], scores[5:10], scores[10:100, 1] = 0.9, NAN, 0.9
    weights = draw_weights(scores)
    assert (weights[:5] > 3.5).all() and (weights[5:10] == 0).all() and (weights[10:] == 1).all()


def test_training_takes_labels_with_holes() -> None:
    scores = np.random.default_rng(1).random((80, 2)).astype(np.float32)
    scores[::2, 0], scores[:10] = NAN, NAN
    net = Labeller(SMALL)
    train_classifier(net, noise(80), scores, steps=2, batch=16)
    assert np.isfinite(predict(net, noise(4))).all()
    with pytest.raises(ContractError, match="labelled rows"):
        train_classifier(net, noise(80), np.full((80, 2), NAN, np.float32), steps=1, batch=16)


def test_an_overconfident_network_becomes_calibrated_and_keeps_its_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    honest = rng.normal(-1, 1.5, (4000, 2)).astype(np.float32)
    labels = (rng.random((4000, 2)) < 1 / (1 + np.exp(-honest))).astype(np.float32)
    labels[:100, 1] = NAN
    net = Labeller(SMALL).eval()
    place = torch.from_numpy(3 * honest + 2)  # too sure of itself, and too fond of yes

    def head(features: torch.Tensor) -> torch.Tensor:
        return place[net_rows]

    net_rows = slice(0, 4000)
    monkeypatch.setattr(net, "features", lambda images: [images])
    monkeypatch.setattr(net, "head_of", head)
    monkeypatch.setattr(
        "sdflow_core.faces.pretraining.calibration.predict_logits",
        lambda network, images: (place * network.slope + network.offset).numpy(),
    )

    def scores() -> np.ndarray:
        return net.scores(torch.zeros(1, 3, 64, 64)).numpy()

    before = scores()[:, 0]
    fit_calibration(net, noise(1), labels)
    after, truth = scores()[:, 0], labels[:, 0] > 0.5
    assert calibration_error(before, truth) > 0.15
    assert calibration_error(after, truth) < 0.03
    assert auc(after, truth) == pytest.approx(auc(before, truth), abs=1e-4)
    assert net.slope.tolist() == pytest.approx([1 / 3, 1 / 3], rel=0.15)


def test_calibration_travels_with_the_weights_and_old_files_load_without() -> None:
    for cls in (Labeller, JudgeNetwork):
        net = cls(SMALL).eval()
        x = torch.rand(2, 3, 64, 64)
        raw = net.logits(x)
        net.calibrate(torch.tensor([0.5, 2.0]), torch.tensor([1.0, -1.0]))
        data = save_model(net)
        read = load_model(data)
        torch.testing.assert_close(read.logits(x), raw * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -1.0]))
        old = {k: v for k, v in load(data).items() if k not in ("slope", "offset")}
        old_file = save(old, metadata={"sdflow": json.dumps(read_header(data))})
        torch.testing.assert_close(load_model(old_file).logits(x), raw)
        with pytest.raises(ContractError, match="calibration"):
            net.calibrate(torch.tensor([0.0, 1.0]), torch.zeros(2))


def test_people_held_out_stay_held_out() -> None:
    people = [f"p{i}" for i in range(2000)]
    kept = held_out(people + people)
    assert (kept[:2000] == kept[2000:]).all()
    assert kept.mean() == pytest.approx(0.15, abs=0.03)


def test_groups_by_hand() -> None:
    columns = {"gender": ["man"] * 3 + ["woman"] * 3 + [""], "age": ["20-29"] * 5 + ["30-39"] * 2}
    masks = group_masks(columns, minimum=2)
    assert {k: int(v.sum()) for k, v in masks.items()} == {
        "gender: man": 3, "gender: woman": 3, "age: 20-29": 5, "age: 30-39": 2,
        "man, 20-29": 3, "woman, 20-29": 2,
    }  # fmt: skip
    value = np.arange(7.0)
    table = group_table({"ece_a": lambda rows: float(value[rows].mean()), "auc_a": lambda _: None}, masks)
    assert table["worst"] == {"ece_a": {"group": "age: 30-39", "value": 5.5}}
    assert table["groups"]["gender: man"] == {"n": 3, "ece_a": 1.0}
    assert age_band("34.0") == "30-39" and age_band("") == ""
    curve = reliability(np.array([0.05, 0.95, 0.97], np.float32), np.array([False, True, False]))
    assert [b["count"] for b in curve] == [1, 2] and curve[1]["share_true"] == 0.5


BENCH: dict[str, Any] = {
    "auc_smiling": 0.99, "worst_auc_smiling": 0.95, "worst_auc_smiling_group": "gender: man",
    "auc_smiling_second": 0.98, "ece_smiling": 0.02, "psnr_db": 22.7, "one_face_share": 1.0, "render_ms": 9.0,
    "groups": {"gender: man": {"n": 900, "auc_smiling": 0.95, "psnr_db": 22.1}},
    "n_test": 1300, "n_test_people": 500,
}  # fmt: skip
METRICS: dict[str, Any] = {
    "reliability": {
        kind: {"smiling": [{"mean_score": 0.05, "share_true": 0.04, "count": 700}]}
        for kind in ("labeller", "judge")
    },
    "groups": {"gender: man": {"n": 900, "psnr_db": 22.1, "auc_smiling": 0.95, "judge_auc_smiling": 0.94}},
    "worst": {"judge_auc_smiling": {"group": "gender: man", "value": 0.94}},
    "mean": {"auc_smiling": 0.96},
    "test_people_images": 2100,
}
_NETWORKS = {
    kind: network(LabellerConfig(attributes=("smiling",), channels=(4, 8)))
    for kind, network in (("labeller", Labeller), ("judge", JudgeNetwork))
}
READERS = readers_of(METRICS, _NETWORKS)
READER = READERS["labeller"]
WORDS = {
    "all": {
        "title": "t", "trained_on": "d", "licence": "l", "licence_id": "i", "intended_use": "u",
        "known_failures": ["soft hair"], "seeds": {"a": 1}, "split": "by person",
    },
}  # fmt: skip


def test_a_card_has_every_field_and_every_figure_its_command() -> None:
    cards = {kind: card_of(kind, b"w", BENCH, WORDS, READERS) for kind in PREFIXES}
    for card in cards.values():
        assert all(card[name] for name in FIELDS)
        assert all(figure["command"] for figure in card["metrics"].values())
    assert cards["labeller"]["metrics"]["auc_smiling"]["worst"] == {"value": 0.95, "group": "gender: man"}
    assert cards["judge"]["metrics"]["auc_smiling"]["value"] == 0.98
    assert cards["judge"]["groups"] == {"gender: man": {"n": 900, "auc_smiling": 0.94}}
    assert cards["judge"]["worst"]["auc_smiling"]["value"] == 0.94 and not cards["labeller"]["worst"]
    assert cards["labeller"]["calibration"] == {"smiling": {"slope": 1.0, "offset": 0.0}}
    with pytest.raises(SystemExit, match="calibration"):
        card_of("labeller", b"w", BENCH, WORDS, {})
    with pytest.raises(SystemExit, match="seeds"):
        card_of("prior", b"w", BENCH, {"all": {**WORDS["all"], "seeds": {}}}, {})


def test_a_shown_card_has_figures_groups_and_reliability(capsys: pytest.CaptureFixture[str]) -> None:
    print_card(card_of("labeller", b"w", BENCH, WORDS, {"labeller": READER}))
    said = capsys.readouterr().out
    for word in (
        "auc_smiling",
        "gender: man",
        "900",
        "1,300 photographs of 500 test people",
        "2,100 of test people",
        "Reliability: smiling",
        "soft hair",
        "bench_embedded.py",
    ):
        assert word in said
    print_card({"kind": "old", "metrics": {"agreement": {"smiling": {"auc": 0.9886}}}})
    assert "0.9886" in capsys.readouterr().out


def test_a_group_needs_thirty_labels_for_a_calibration_error() -> None:
    scores = np.full((40, 1), 0.9, np.float32)
    labels = np.full((40, 1), np.nan, np.float32)
    labels[:30] = 1.0
    figures = reader_figures(scores, scores, labels, ("smiling",))
    everybody, fewer = np.ones(40, bool), np.arange(40) < 29
    assert figures["ece_smiling"](everybody) == pytest.approx(0.1, abs=1e-6)
    assert figures["ece_smiling"](fewer) is None  # 29 labels: what they give is chance
