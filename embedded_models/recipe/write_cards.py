"""Write the cards of the embedded models from measured figures and a small part written by hand.

Usage: `export_models.py` (see there), then
`python benchmarks/bench_embedded.py --data DATA --json | tail -1 > bench.json`, then
`python embedded_models/recipe/write_cards.py --bench bench.json --pretrained pretrained.json`. No figure is
typed by hand: what is measured comes from `bench.json`, the reliability curves and per-group figures of the
readers from the `metrics` that the pretraining printed, their calibration from the weights. `words.json`
holds what no script can know (title, data, intended use, failures, seeds) as `{"all": {...}, "<kind>":
{...}}`. A card with a field missing is not written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from sdflow_core.faces.checkpoint import load_model

COMMAND = "python benchmarks/bench_embedded.py --data FOLDER --json"
READERS_COMMAND = (
    "sdflow pretrain FACES --labels LABELS.csv --name embedded --config embedded_models/recipe/embedded.toml"
    " --teacher FOLDER"
)
FIELDS = (
    "title", "trained_on", "licence", "licence_id", "intended_use", "known_failures", "seeds", "split",
    "metrics", "groups", "sha256",
)  # fmt: skip
# Which figures say something about which model, by the beginning of the key.
PREFIXES = {
    "generator": ("psnr_db", "same_person", "other_people", "one_face", "memorised", "render_ms", "feature_"),
    "encoder": ("psnr_db", "agree_", "same_person", "other_people", "invert_ms"),
    "prior": ("one_face", "memorised", "feature_"),
    "labeller": ("auc_", "ece_", "agree_", "expression_"),
    "judge": ("auc_", "ece_", "agree_"),
}
SECOND = "_second"  # how the benchmark marks a figure that the judge gave


def figures_of(kind: str, bench: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of one model: key -> value, command, and the worst group where there is one."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in bench.items():
        if not key.startswith(PREFIXES[kind]) or not isinstance(value, int | float):
            continue
        if kind in ("labeller", "judge") and (kind == "judge") != key.endswith(SECOND):
            continue
        name = key.removesuffix(SECOND) if kind == "judge" else key
        out[name] = {"value": value, "command": COMMAND}
        for mark in ("worst", "worst_crossed"):
            if f"{mark}_{key}" in bench:
                out[name][mark] = {"value": bench[f"{mark}_{key}"], "group": bench[f"{mark}_{key}_group"]}
    return out


def readers_of(metrics: dict[str, Any], networks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the pretraining measured of labeller and judge, and how they are calibrated."""
    out: dict[str, dict[str, Any]] = {}
    for kind, mark in (("labeller", ""), ("judge", "judge_")):

        def mine(row: dict[str, Any], mark: str = mark) -> dict[str, Any]:
            keys = {k: k.removeprefix(mark) for k in row if k.startswith(mark)}
            return {new: row[old] for old, new in keys.items() if new.startswith(("auc_", "ece_", "agree_"))}

        network = networks[kind]
        out[kind] = {
            "n": metrics["test_people_images"],
            "groups": {g: {"n": row["n"], **mine(row)} for g, row in metrics.get("groups", {}).items()},
            "worst": mine(metrics.get("worst", {})),
            "mean": mine(metrics.get("mean", {})),
            "reliability": metrics["reliability"][kind],
            "calibration": {
                name: {"slope": round(float(slope), 4), "offset": round(float(offset), 4)}
                for name, slope, offset in zip(network.attributes, network.slope, network.offset, strict=True)
            },
        }
    return out


def card_of(
    kind: str, weights: bytes, bench: dict[str, Any], words: dict[str, Any], readers: dict[str, Any]
) -> dict[str, Any]:
    """One card.

    Raises:
        SystemExit: A field is missing or empty; names it.
    """
    card: dict[str, Any] = {**words.get("all", {}), **words.get(kind, {})}
    card["known_failures"] = [
        failure for part in ("all", kind) for failure in words.get(part, {}).get("known_failures", [])
    ]
    card |= {"metrics": figures_of(kind, bench), "sha256": hashlib.sha256(weights).hexdigest()}
    found = bench.get("groups", {})
    keep = PREFIXES[kind]
    card["groups"] = {
        group: {k: v for k, v in row.items() if k == "n" or k.startswith(keep)}
        for group, row in found.items()
    }
    card["measured_on"] = (
        f"figures: {bench['n_test']:,} photographs of {bench['n_test_people']} test people of LFW"
    )
    if kind in readers:
        mine = readers[kind]
        card["measured_on"] += f"; groups and reliability: {mine['n']:,} of test people of both sets"
        card |= {
            "groups": mine.get("groups") or card["groups"],
            "worst": mine.get("worst", {}),
            "mean": mine.get("mean", {}),
            "groups_command": READERS_COMMAND,
            "reliability": mine["reliability"],
            "calibration": mine["calibration"],
        }
    missing = [name for name in FIELDS if not card.get(name)]
    if kind in ("labeller", "judge"):
        missing += [name for name in ("reliability", "calibration") if not card.get(name)]
    if missing:
        raise SystemExit(f"card of the {kind}: nothing is known of {', '.join(missing)}")
    return card


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", type=Path, required=True)
    parser.add_argument("--words", type=Path, default=Path(__file__).with_name("words.json"))
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parents[1])
    options = parser.parse_args()
    bench, words = json.loads(options.bench.read_text()), json.loads(options.words.read_text())
    metrics = json.loads(options.pretrained.read_text())["metrics"]
    networks = {
        kind: load_model((options.models / f"{kind}.safetensors").read_bytes(), expect=kind)
        for kind in ("labeller", "judge")
    }
    readers = readers_of(metrics, networks)
    cards = {
        kind: card_of(kind, (options.models / f"{kind}.safetensors").read_bytes(), bench, words, readers)
        for kind in PREFIXES
    }
    for kind, card in cards.items():  # all of them or none
        text = json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False)
        (options.models / f"{kind}.card.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
