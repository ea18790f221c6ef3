"""A dry run: it says within seconds what would go wrong after hours, and writes nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cli.main as command
from sdflow_core.faces.detect import default_detector
from sdflow_core.faces.networks import Networks, to_uint8
from sdflow_core.faces.pretraining import rehearsal
from sdflow_core.faces.pretraining.configuration import read_config
from sdflow_core.faces.pretraining.people import TEST_PART, part_of
from sdflow_core.faces.pretraining.rehearsal import FirstLook, first_look, rehearse
from sdflow_core.records.errors import ContractError
from sdflow_core.records.objects import Store, open_store
from sdflow_core.weights.embedded import install_embedded
from sdflow_core.weights.model_store import ModelStore
from tasks.demo import photograph

TINY = {
    "attributes": ["smiling", "young"],
    "feature_steps": 100,
    "labeller_steps": 50,
    "judge_steps": 50,
    "data": {"groups": ["race"]},
    "autoencoder": {
        "generator": {
            "resolution": 64,
            "style_dim": 8,
            "channel_base": 256,
            "channel_max": 12,
            "mapping_layers": 0,
        },
        "encoder": {"style_dim": 8, "channels": [4, 6, 8, 8, 8], "hidden": 16},
        "steps": 1000,
        "adversarial_from": 500,
        "batch": 4,
    },
}
PEOPLE, PHOTOGRAPHS = 40, 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names enough for a training. The pictures behind them repeat: a sample alone is looked at."""
    root = tmp_path_factory.mktemp("domain")
    store = open_store(str(root / "models"))
    networks = Networks(ModelStore(store), install_embedded(store))
    images = networks.render(networks.prior.sample(PEOPLE, torch.Generator().manual_seed(0), truncation=0.7))
    kept: list[Path] = []
    (root / "people").mkdir()
    for number, pixels in enumerate(to_uint8(images)):
        kept.append(root / f"{number}.jpg")
        Image.fromarray(photograph(pixels)).save(kept[-1], quality=95)
    lines = ["path,smiling,young,race"]
    for number in range(PHOTOGRAPHS):
        name = f"person {number:04d}.jpg"
        (root / "people" / name).hardlink_to(kept[number * PEOPLE // PHOTOGRAPHS])
        lines.append(f"{name},{number % 2},{'' if number % 5 else 0.25},{'x' if number % 3 else ''}")
    (root / "labels.csv").write_text("\n".join(lines))
    (root / "config.json").write_text(json.dumps(TINY))
    return root


def rehearsed(capsys: pytest.CaptureFixture[str], folder: Path, *words: str, **paths: Path) -> Any:
    given = {
        "people": folder / "people",
        "labels": folder / "labels.csv",
        "config": folder / "config.json",
    } | paths
    code = command.app(
        [
            "pretrain", str(given["people"]), "--labels", str(given["labels"]), "--name", "tiny",
            "--config", str(given["config"]), "--dry-run", "--sample", "12", "--json", *words,
        ]
    )  # fmt: skip
    out, err = capsys.readouterr()
    said = json.loads(out.splitlines()[-1])
    if code:
        assert code == 2 and len(err.strip().splitlines()) == 1, err
        return said["error"]["message"]
    assert not err
    return said


def test_a_dry_run_tells_what_will_be_and_leaves_nothing(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDFLOW_STORE", store.uri)
    monkeypatch.setenv("SDFLOW_PIXEL_THREADS", "1")
    said = rehearsed(capsys, folder)
    assert said["sampled"] == 12 and said["usable"] == 12 - sum(said["dropped"].values()) > 6
    assert said["look"]["files"] == said["look"]["labelled"] == PHOTOGRAPHS
    assert said["look"]["memory_bytes"] == PHOTOGRAPHS * 64 * 64 * 3
    assert said["look"]["remarks"] == ["column young has no value above 0.5: nothing can be learned from it"]
    assert set(said["seconds"]) >= {"reading", "features", "labeller", "judge", "autoencoder"}
    assert all(value > 0 for value in said["seconds"].values())
    assert said["total_seconds"] == pytest.approx(sum(said["seconds"].values()))
    assert said["estimate"].startswith("about ") and said["free_bytes"] > 0
    assert list(store.list()) == []


def test_wrong_labels_and_folders_end_a_dry_run_with_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,smiling,young,race\nnobody.jpg,1,0,x\n")
    assert "nobody.jpg" in rehearsed(capsys, folder, labels=table)
    table.write_text((folder / "labels.csv").read_text().replace("person 0003.jpg,1", "person 0003.jpg,3"))
    assert "line 5, column smiling" in rehearsed(capsys, folder, labels=table)
    assert "no column beard" in rehearsed(capsys, folder, "--attributes", "smiling,beard")
    assert "no column tribe" in rehearsed(capsys, folder, "--groups", "tribe")
    assert "no such label CSV" in rehearsed(capsys, folder, labels=tmp_path / "none.csv")
    assert "no file" in rehearsed(capsys, folder, labels=folder)
    assert "does not exist" in rehearsed(capsys, folder, people=tmp_path / "none")
    for file in (folder / "labels.csv", folder / "1.jpg"):
        message = rehearsed(capsys, folder, people=file)
        assert "the source is a file. Expected: a folder" in message and str(file) in message
    lines = (folder / "labels.csv").read_text().splitlines()
    table.write_text("\n".join(lines[:101]))
    message = rehearsed(capsys, folder, labels=table)
    assert "64 labelled pictures for the judge" in message and " for the labeller" in message
    taught = [line for line in lines[1:] if part_of(line.split(",")[0]) != TEST_PART]
    table.write_text("\n".join(lines[:1] + taught))
    assert "0 for the test" in rehearsed(capsys, folder, labels=table)
    few = tmp_path / "few"
    few.mkdir()
    (few / "person 0001.jpg").hardlink_to(folder / "1.jpg")
    message = rehearsed(capsys, folder, people=few)
    assert "at least 500" in message and "1 file in" in message
    for number in range(2, 521):
        (few / f"person {number:04d}.jpg").hardlink_to(folder / "1.jpg")
    message = rehearsed(capsys, folder, people=few)
    assert "who are not kept for the test" in message and "sampled" not in message
    rocks = tmp_path / "rocks"
    rocks.mkdir()
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(tmp_path / "rock.png")
    for number in range(PHOTOGRAPHS):
        (rocks / f"person {number:04d}.jpg").hardlink_to(tmp_path / "rock.png")
    message = rehearsed(capsys, folder, people=rocks)
    assert "0 of 12 sampled pictures usable" in message and "12 no face found" in message


def test_wrong_configurations_end_a_dry_run_with_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, part in (
        ('{"stepz": 3}', "one of attributes, data, feature_steps"),
        ('{"autoencoder": {"adversary": {"stepz": 3}}}', "one of channels, learning_rate"),
        ('{"autoencoder": {"steps": 0}}', "autoencoder.steps"),
        ('{"autoencoder": {"batch": 1}}', "autoencoder.batch"),
        ('{"autoencoder": {"lr_generator": NaN}}', "autoencoder.lr_generator"),
        ('{"autoencoder": {"adversary": {"every": 0}}}', "autoencoder.adversary.every"),
        ('{"autoencoder": {"generator": {"resolution": 63}}}', "power of two"),
        ('{"data": {"minimum": 10}}', "at least 500"),
        ('{"autoencoder": {"generator": {"resolution": 16, "mapping_layers": 0}}}', "from 32 on, found 16"),
        ('{"autoencoder": {"encoder": {"channels": []}}}', "autoencoder.encoder.channels"),
        ('{"autoencoder": {"encoder": {"channels": [4, -1]}}}', "autoencoder.encoder.channels.1"),
        ('{"autoencoder": {"encoder": {"hidden": 0}}}', "autoencoder.encoder.hidden"),
        ('{"autoencoder": {"encoder": {"num_rows": 12}}}', "latents do not fit the generator"),
        ('{"autoencoder": {"adversary": {"channels": [4]}}}', "autoencoder.adversary.channels"),
        (f'{{"autoencoder": {{"adversary": {{"channels": {[4] * 8}}}}}}}', "at most 7 numbers, found 8"),
        ('{"autoencoder": {"seed": -1}}', "autoencoder.seed"),
        ('{"autoencoder": {"ema_half_life": 0}}', "autoencoder.ema_half_life"),
        ('{"autoencoder": {"fall": -1}}', "autoencoder.fall"),
        ('{"autoencoder": {"weight_pixel": NaN}}', "autoencoder.weight_pixel"),
        ('{"autoencoder": {"prior_truncation": -1}}', "autoencoder.prior_truncation"),
        ('{"feature_steps": -1}', "feature_steps"),
        ('{"judge_steps": 0}', "judge_steps"),
        ('{"prior_factors": -3}', "prior_factors"),
        ('{"data": {"balance_cap": Infinity}}', "data.balance_cap"),
        ('{"data": 3}', "a table [data]"),
        ('{"checkpoint_every": 0}', "checkpoint_every"),
        ('{"teacher": "abc"}', "--teacher"),
        ('{"autoencoder": {"steps": "many"}}', "autoencoder.steps"),
        ('{"data": {"template_scale": 0}}', "data.template_scale"),
        ('{"attributes": []}', "at least one"),
        ('{"attributes": ["a b"]}', "a b"),
        ("{", "cannot be read"),
        ("[1]", "names and values"),
    ):
        wrong = tmp_path / "wrong.json"
        wrong.write_text(text)
        assert part in rehearsed(capsys, folder, "--groups", "race", config=wrong)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"autoencoder": [1, 2]}')
    message = rehearsed(capsys, folder, config=wrong)
    assert "Expected: a table. Found: [1, 2]. Where: autoencoder" in message
    assert "a table [autoencoder]" in rehearsed(capsys, folder, "--steps", "10", config=wrong)
    assert "no such configuration" in rehearsed(capsys, folder, config=tmp_path / "none.toml")


def test_the_shipped_recipe_and_the_defaults_are_fine() -> None:
    recipe = Path(__file__).resolve().parents[2] / "embedded_models" / "recipe" / "embedded.toml"
    shipped = read_config(tomllib.loads(recipe.read_text("utf-8")))
    assert len(shipped.attributes) == 10 and shipped.autoencoder.steps == 24_000
    assert read_config(None).autoencoder.generator.resolution == 64


def look(names: list[str], values: dict[str, Any]) -> FirstLook:
    rows = "".join(f"{name.rpartition('/')[2]},{i % 2},1\n" for i, name in enumerate(names))
    return first_look(names, b"path,smiling,young\n" + rows.encode(), read_config(values))[0]


def test_names_alone_tell_what_cannot_be_trained() -> None:
    plain = {"attributes": ["smiling", "young"]}
    flat = [f"person {number:04d}.jpg" for number in range(PHOTOGRAPHS)]
    assert look(flat, plain).labelled == PHOTOGRAPHS
    with pytest.raises(ContractError, match="1,280 pictures .* lower prior_factors"):
        look(flat, plain | {"prior_factors": 9999})
    # one folder, whoever it belongs to, is one person
    tested = next(f"p{i}" for i in range(99) if part_of(f"p{i}") == TEST_PART)
    for person in (tested, next(f"p{i}" for i in range(99) if part_of(f"p{i}") != TEST_PART)):
        with pytest.raises(ContractError, match="cannot be split by person.*1 people"):
            look([f"{person}/{name}" for name in flat], plain)


def test_a_wish_for_a_teacher_without_one_is_noted() -> None:
    plain = {"attributes": ["smiling", "young"]}
    flat = [f"person {number:04d}.jpg" for number in range(PHOTOGRAPHS)]

    def noted(**values: Any) -> bool:
        return any("no teacher" in remark for remark in look(flat, plain | values).remarks)

    assert noted(autoencoder={"weight_identity": 2.0})
    assert not noted(autoencoder={"weight_identity": 0.0}) and not noted()
    assert not noted(autoencoder={"weight_identity": 2.0}, teacher="abc")


class Counting:
    """Stands for a network that tells people apart; counts how often it is asked."""

    asked = 0

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return images.mean(dim=(2, 3)) + 2


def test_steps_are_timed_with_the_teacher_also_where_it_joins_late(folder: Path) -> None:
    parts = TINY["autoencoder"]
    assert isinstance(parts, dict)
    files = [(path.name, path.read_bytes) for path in sorted((folder / "people").iterdir())]

    def asked(start: int) -> int:
        teacher = Counting()
        config = read_config(TINY | {"autoencoder": parts | {"identity_from": start}})
        table = (folder / "labels.csv").read_bytes()
        rehearse(files, table, config, default_detector(), sample=12, patience_seconds=0, identity=teacher)
        return teacher.asked

    always, late = asked(0), asked(900)
    assert 0 < late < always


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a device that is not there")
def test_a_dry_run_is_one_of_the_device_that_will_train(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDFLOW_DEVICE", "cuda")
    assert "SDFLOW_DEVICE" in rehearsed(capsys, folder)


def test_too_little_memory_and_room(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "available_memory_bytes", lambda: 2**20)
        assert "do not fit into memory" in rehearsed(capsys, folder)
    monkeypatch.setattr(rehearsal, "free_bytes", lambda store: 2**20)
    assert "too little room" in rehearsed(capsys, folder)


def test_a_training_that_cannot_begin_is_found(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = TINY["autoencoder"]
    assert isinstance(parts, dict)
    for part, change, said in (
        ("encoder", {"style_dim": 16}, "latents do not fit the generator"),
        ("generator", {"resolution": 128}, "encoder input"),
    ):
        other = TINY | {"autoencoder": parts | {part: parts[part] | change}}
        (tmp_path / "other.json").write_text(json.dumps(other))
        assert said in rehearsed(capsys, folder, config=tmp_path / "other.json")

    from sdflow_core.faces.pretraining.autoencoder import AutoencoderTraining

    for error, said in (
        (ContractError("pretraining diverged", found="a loss that is not finite"), "not finite"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied\nmore"), "first step. Found: mat1"),
    ):

        def fail(self: Any, error: Exception = error) -> dict[str, float]:
            raise error

        monkeypatch.setattr(AutoencoderTraining, "step", fail)
        assert said in rehearsed(capsys, folder)
