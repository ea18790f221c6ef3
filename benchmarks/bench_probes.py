"""What probes read of the attributes from w and from z, and what swapping s between people does.

10,000 codes that no flow was fitted to: on its own training codes z is orthogonal to s by construction, and a
probe reads less than nothing there. Attributes are the labeller's opinion of what a code renders to. A linear
probe and a small network (`benchmarks/editors/probes.py`) are judged on rows they have not seen. Swapped: z
and s of two people are put together; the attribute should be that of the one, the person that of the other,
by dlib's ResNet, which had no part in any training.

Trained editors are those of `bench_editors.py`, from the same work folder.

Usage: `python benchmarks/bench_probes.py [--data FOLDER] [--rows published,"first generation","ours: flow"]
       [--codes 10000] [--swaps 200] [--work FOLDER] [--quick] [--json]`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.editors.material import Material  # noqa: E402
from benchmarks.editors.observers import Observers  # noqa: E402
from benchmarks.editors.options import QUICK, Budget, Options  # noqa: E402
from benchmarks.editors.probes import probe_table  # noqa: E402
from benchmarks.editors.rows import ROWS, trained  # noqa: E402
from benchmarks.judges.fetch import default_cache  # noqa: E402
from sdflow_core.faces.networks import to_uint8  # noqa: E402
from sdflow_core.faces.recognizer import CropRecognizer  # noqa: E402
from sdflow_core.method.solvers import SolverConfig  # noqa: E402
from sdflow_core.records.errors import SDFlowError  # noqa: E402

_BATCH = 256
_SOLVER = SolverConfig(method="rk4", steps=8)  # for all: only the state is needed, and it is accurate to 1e-3
_MOST_FROM_Z, _LEAST_FROM_W = 0.60, 0.90


def base_of(flow: Any, codes: Tensor, s: Tensor) -> Tensor:
    """z [N, L, D] of codes."""
    with torch.no_grad():
        parts = zip(codes.split(_BATCH), s.split(_BATCH), strict=True)
        return torch.cat([flow.to_base(w, now, _SOLVER) for w, now in parts])


def swapped(material: Material, flow: Any, codes: Tensor, s: Tensor, count: int) -> dict[str, float]:
    """z of person i, s of person j: whose attributes are seen, and who is it?

    Returns:
        `attributes_of_s`, `attributes_of_z`: shares of attributes in which i and j differ that are read as
        those of j, of i; `distance_z`, `distance_s`: mean distance by the judge to i and to j;
        `distance_strangers`: between the renderings of i and j; `person_of_z`: share of swaps nearer to i.
    """
    first, second = torch.arange(count), torch.arange(count, 2 * count)
    with torch.no_grad():
        z = flow.to_base(codes[first], s[first], _SOLVER)
        # the same solver there and back with one's own s, so that only the swap is seen
        drawn = codes[first] + flow.from_base(z, s[second], _SOLVER) - flow.from_base(z, s[first], _SOLVER)
    shown = [material.networks.render(part) for part in (drawn, codes[first], codes[second])]
    read = [material.networks.scores(part)[:, material.columns] > 0.5 for part in shown]
    recognizer = CropRecognizer(material.networks.identity, material.networks.bundle.template_scale)
    points = np.broadcast_to(recognizer.points * shown[0].shape[2] - 0.5, (count, 5, 2))
    judge = Observers(material, points)
    who = [judge.dlib(to_uint8(part), np.arange(count)).astype(np.float64) for part in shown]
    differ = read[1] != read[2]
    to_z, to_s = (np.linalg.norm(who[0] - other, axis=1) for other in who[1:])
    return {
        "attributes_of_s": float((read[0] == read[2])[differ].float().mean()),
        "attributes_of_z": float((read[0] == read[1])[differ].float().mean()),
        "distance_z": float(to_z.mean()),
        "distance_s": float(to_s.mean()),
        "distance_strangers": float(np.linalg.norm(who[1] - who[2], axis=1).mean()),
        "person_of_z": float((to_z < to_s).mean()),
    }


def measure(material: Material, names: list[str], codes: int, swaps: int) -> dict[str, Any]:
    """Probes of w once, of z for every row; swaps for every row."""
    data, attributes = material.unseen(codes), material.options.attributes
    s = data.of(material.columns)
    out: dict[str, Any] = {"codes": len(data.codes)}
    out["w"] = {"probes": probe_table({"w": data.codes}, s, attributes)["w"]}
    for name in names:
        editor = trained(next(row for row in ROWS if row.name == name), material, 0).editor
        flow: Any = getattr(editor, "flow", None)
        if flow is None:
            continue
        with torch.no_grad():  # what this editor itself takes s for
            shown = (part.float() / 127.5 - 1.0 for part in data.images.split(_BATCH))
            own = torch.cat([editor.encode_semantics(part) for part in shown])
        z = base_of(flow, data.codes, own)
        out[name] = {
            "probes": probe_table({"z": z}, s, attributes)["z"],
            "swap": swapped(material, flow, data.codes, own, swaps),
        }
        material.say(f"{name}: {out[name]}")
    return out


def print_table(found: dict[str, Any]) -> None:
    """AUC of every probe with its bound, then the swaps."""
    print(f"{found['codes']:,} codes; AUC of probes on held-out codes")
    attributes = list(found["w"]["probes"]["linear"])
    print(f"{'read from':22}{'probe':>8}" + "".join(f"{name:>12}" for name in attributes) + f"{'worst':>9}")
    for name, row in found.items():
        if name == "codes":
            continue
        for kind, values in row["probes"].items():
            numbers = [values[a] for a in attributes]
            # what is read the wrong way round is read too
            worst = min(numbers) if name == "w" else max(max(v, 1.0 - v) for v in numbers)
            fine = worst > _LEAST_FROM_W if name == "w" else worst <= _MOST_FROM_Z
            bound = f"> {_LEAST_FROM_W:.2f}" if name == "w" else f"<= {_MOST_FROM_Z:.2f}"
            print(
                f"{name if name == 'w' else 'z, ' + name:22}{kind:>8}"
                + "".join(f"{value:12.3f}" for value in numbers)
                + f"{worst:9.3f}  {bound} {'reached' if fine else 'MISSED'}"
            )
    print("\nz of one person with s of another: attributes that differ, and who it is (dlib distance)")
    print(f"{'flow':22}{'as s':>8}{'as z':>8}{'to z':>8}{'to s':>8}{'strangers':>11}{'nearer to z':>13}")
    for name, row in found.items():
        if name not in ("codes", "w"):
            swap = row["swap"]
            print(
                f"{name:22}{swap['attributes_of_s']:8.3f}{swap['attributes_of_z']:8.3f}{swap['distance_z']:8.3f}"
                f"{swap['distance_s']:8.3f}{swap['distance_strangers']:11.3f}{swap['person_of_z']:13.3f}"
            )


def main() -> int:
    """Print the tables; with --json one object as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=None, help="folder with lfw.tar and its labels")
    parser.add_argument("--judges", type=Path, default=None, help="folder of the judges' packages")
    parser.add_argument("--cache", type=Path, default=default_cache() / "faces", help="prepared photographs")
    parser.add_argument("--work", type=Path, default=default_cache() / "editors", help="trained editors")
    parser.add_argument("--rows", default="published,first generation,ours: flow", help="rows with a flow")
    parser.add_argument("--codes", type=int, default=10_000, help="people to read from")
    parser.add_argument("--swaps", type=int, default=200, help="pairs of people")
    parser.add_argument("--real", type=int, default=None, help="photographs to train on")
    parser.add_argument("--samples", type=int, default=None, help="people drawn from the prior")
    parser.add_argument("--paper-steps", type=int, default=None, help="of SDFlow as published")
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = [name.strip() for name in given.rows.split(",") if name.strip()]
    unknown = [name for name in names if name not in {row.name for row in ROWS}]
    if unknown:
        parser.error(f"unknown row {unknown[0]}; known: {'; '.join(row.name for row in ROWS)}")
    asked = {"real": given.real, "samples": given.samples, "published_steps": given.paper_steps}
    base = QUICK if given.quick else Budget()
    budget = Budget(**(base.model_dump() | {k: v for k, v in asked.items() if v is not None}))
    options = Options(data=given.data, judges=given.judges, cache=given.cache, work=given.work, budget=budget)
    try:
        material = Material(options, lambda text: print(text, file=sys.stderr, flush=True))
        codes = 400 if given.quick else given.codes
        found = measure(material, names, codes, min(given.swaps, codes // 2))
    except SDFlowError as error:
        print(error, file=sys.stderr)
        return 1
    print_table(found)
    if given.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
