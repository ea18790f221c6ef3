"""Train, calibrate and measure labeller and judge alone, for a generator and encoder that are there.

Usage: `python embedded_models/recipe/train_readers.py --faces faces.npz --labels labels.csv
--models embedded_models --to FOLDER [--minutes 15]`. `faces.npz` holds `images` uint8 [N, H, W, 3] as ingest
aligns them (they are reduced to the size of the encoder) and `names`. Writes `labeller.safetensors`,
`judge.safetensors` and `readers.json` (figures, reliability, groups); each stage that is done is kept in
FOLDER, so that a run that was stopped goes on after it (take a new FOLDER for other attributes, models or
steps, and one outside of this repository: it also keeps reconstructions of the faces). `--minutes` measures
the speed first and cuts the steps of all stages alike; it does not count the reconstructions, made before.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.labeller import JudgeNetwork, Labeller, LabellerConfig
from sdflow_core.faces.pretraining.autoencoder import channels_last
from sdflow_core.faces.pretraining.calibration import fit_calibration, held_out
from sdflow_core.faces.pretraining.classifiers import predict, train_classifier
from sdflow_core.faces.pretraining.data import JUDGE_PART, LABELLER_PART, TEST_PART, part_of, person_of
from sdflow_core.faces.pretraining.figures import (
    age_band,
    group_masks,
    group_table,
    psnr_db,
    reader_figures,
    reliability,
)
from sdflow_core.faces.pretraining.run import reconstruct

ATTRIBUTES = (
    "smiling", "young", "male", "eyeglasses",
    "beard", "bald", "receding_hairline", "mouth_open", "gray_hair", "blond_hair",
)  # fmt: skip
RENAMED = {"mouth_open": "mouth_slightly_open", "beard": "no_beard"}
INVERTED = frozenset({"beard"})
NO_SCORES = ("path", "df_", "gender", "age", "race", "set")


def read_table(path: Path) -> tuple[dict[str, list[float]], dict[str, tuple[str, str, str]], tuple[str, ...]]:
    """Labels by path, (gender, age band, race label) by path, and the names of the columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [{k.lower(): v for k, v in row.items()} for row in csv.DictReader(file)]
    columns = [c for c in rows[0] if not c.startswith(NO_SCORES)]
    extra = [a for a, c in RENAMED.items() if a not in columns and c in columns]

    def value(row: dict[str, str], name: str) -> float:
        if name in extra:
            number = value(row, RENAMED[name])
            return 1 - number if name in INVERTED else number
        return float(row[name]) if row[name].strip() else float("nan")

    names = (*columns, *extra)
    labels = {row["path"]: [value(row, name) for name in names] for row in rows}
    groups = {
        row["path"]: (
            row.get("df_gender", row.get("gender", "")),
            age_band(row.get("df_age", row.get("age", ""))),
            row.get("df_race", row.get("race", "")),
        )
        for row in rows
    }
    return labels, groups, names


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("embedded_models"))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--attributes", default=",".join(ATTRIBUTES))
    parser.add_argument("--feature-steps", type=int, default=3000)
    parser.add_argument("--labeller-steps", type=int, default=1200)
    parser.add_argument("--judge-steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=0.0, help="0: all the steps")
    parser.add_argument("--rows", type=int, default=0, help="only so many faces, to try it")
    o = parser.parse_args()
    o.to.mkdir(parents=True, exist_ok=True)
    attributes = tuple(o.attributes.split(","))
    generator, encoder = (
        channels_last(load_model((o.models / f"{k}.safetensors").read_bytes(), expect=k))
        for k in ("generator", "encoder")
    )
    size = generator.config.resolution
    table, group_of, columns = read_table(o.labels)
    with np.load(o.faces) as data:
        names = [str(n) for n in data["names"]]
        keep = [i for i, n in enumerate(names) if n in table][: o.rows or None]
        pictures = data["images"]
        images = np.stack([cv2.resize(pictures[i], (size, size), interpolation=cv2.INTER_AREA) for i in keep])
        del pictures
    names = [names[i] for i in keep]
    scores = np.array([table[n] for n in names], np.float32)
    index = [columns.index(a) for a in attributes]
    people = [person_of(n) for n in names]
    part, kept = np.array([part_of(p) for p in people]), held_out(people)
    digest = hashlib.sha256(save_model(generator) + save_model(encoder) + images.tobytes()).hexdigest()
    kept_pictures = o.to / f"reconstructions-{digest[:16]}.npy"
    if kept_pictures.exists():
        rebuilt = np.load(kept_pictures)
    else:
        rebuilt = reconstruct(generator, encoder, images)
        partial = kept_pictures.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, rebuilt)
        partial.replace(kept_pictures)
    started = time.monotonic()
    learn = (part == LABELLER_PART) & ~kept, (part == JUDGE_PART) & ~kept

    def speed(network: Any, rows: Any, targets: Any) -> float:
        train_classifier(network, images[rows], targets[rows], steps=3)
        before = time.monotonic()
        train_classifier(network, images[rows], targets[rows], steps=8)
        return (time.monotonic() - before) / 8

    def wide() -> Any:
        torch.manual_seed(1)
        return channels_last(Labeller(LabellerConfig(attributes=columns, resolution=size)))

    def fresh() -> Any:
        torch.manual_seed(3)
        return channels_last(JudgeNetwork(LabellerConfig(attributes=attributes, resolution=size)))

    share = 1.0
    if o.minutes:
        first, second = speed(wide(), learn[0], scores), speed(fresh(), learn[1], scores[:, index])
        need = first * (o.feature_steps + o.labeller_steps) + second * o.judge_steps
        share = min(1.0, (60 * o.minutes - (time.monotonic() - started)) / need)
    steps = {k: max(1, int(share * getattr(o, f"{k}_steps"))) for k in ("feature", "labeller", "judge")}
    print(json.dumps({"faces": len(names), "steps": steps, "attributes": attributes}), flush=True)

    def stage(name: str, build: Any, rows: Any, targets: Any, **how: Any) -> Any:
        path = o.to / f"{name}.stage"
        if path.exists():
            return channels_last(load_model(path.read_bytes()))
        network = build()
        train_classifier(network, images[rows], targets[rows], steps=steps[name], **how)
        partial = path.with_suffix(".partial")
        partial.write_bytes(save_model(network))
        partial.replace(path)
        print(json.dumps({"done": name, "seconds": round(time.monotonic() - started)}), flush=True)
        return network

    features = stage("feature", wide, learn[0], scores, seed=1)
    wanted = scores[:, index]
    labeller = stage(
        "labeller", lambda: channels_last(features.only(attributes)), learn[0], wanted,
        seed=2, lr=7e-4, reconstructions=rebuilt[learn[0]],
    )  # fmt: skip
    judge = stage("judge", fresh, learn[1], wanted, seed=3, reconstructions=rebuilt[learn[1]])

    test = part == TEST_PART
    masks = group_masks(
        {
            column: [group_of[n][i] for n, used in zip(names, test, strict=True) if used]
            for i, column in enumerate(("gender", "age", "race"))
        }
    )
    pixels = psnr_db(images[test], rebuilt[test])
    report: dict[str, Any] = {"steps": steps, "n_test": int(test.sum()), "psnr_db": float(pixels.mean())}
    report["positives"] = {a: int((wanted[:, i] > 0.5).sum()) for i, a in enumerate(attributes)}
    for kind, network, of in (("labeller", labeller, LABELLER_PART), ("judge", judge, JUDGE_PART)):
        before = _flat(network, images[test], rebuilt[test], wanted[test], attributes)
        rows = (part == of) & kept
        fitted = fit_calibration(network, images[rows], wanted[rows])
        data = save_model(network, half=True)
        network = load_model(data)
        on_photo, on_rebuilt = predict(network, images[test]), predict(network, rebuilt[test])
        figures = reader_figures(on_photo, on_rebuilt, wanted[test], attributes)
        report[kind] = {
            "before_calibration": before,
            "figures": _flat(network, images[test], rebuilt[test], wanted[test], attributes),
            "calibration": fitted,
            "reliability": {
                a: reliability(on_photo[:, i], wanted[test][:, i] > 0.5) for i, a in enumerate(attributes)
            },
            **group_table({**figures, "psnr_db": lambda rows: float(pixels[rows].mean())}, masks),
        }
        (o.to / f"{kind}.safetensors").write_bytes(data)
    report["seconds"] = round(time.monotonic() - started, 1)
    (o.to / "readers.json").write_text(json.dumps(report, indent=1) + "\n")
    for i, a in enumerate(attributes):
        line = [f"{report[k][w][f'{f}_{a}']}" for f in ("auc", "ece") for k in ("labeller", "judge")
                for w in (("before_calibration", "figures") if f == "ece" else ("figures",))]  # fmt: skip
        print(f"| {a} | {int((wanted[:, i] > 0.5).sum())} | " + " | ".join(line) + " |")


def _flat(network: Any, photo: Any, rebuilt: Any, labels: Any, attributes: tuple[str, ...]) -> dict[str, Any]:
    figures = reader_figures(predict(network, photo), predict(network, rebuilt), labels, attributes)
    everybody = np.ones(len(photo), bool)
    values = {key: figure(everybody) for key, figure in figures.items()}
    return {key: None if v is None else round(v, 4) for key, v in values.items()}


if __name__ == "__main__":
    sys.exit(main())
