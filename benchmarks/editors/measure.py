"""Measures an editor block by block of held-out people; every block is kept as soon as it is measured."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.editors.material import HeldOut, Material
from benchmarks.editors.observers import Observers
from sdflow_core.faces.recognizer import CropRecognizer
from sdflow_core.method.editor import Editor
from sdflow_core.method.sweeping import BEYOND, Sweep, edit_cost, find_strengths, join_sweeps, sweep

_COST_BATCH = 32
_REFERENCE = 1000


def strengths_of(material: Material, editor: Editor, digest: str) -> NDArray[np.float32]:
    """Six strengths an attribute [A, 6], found on training codes."""
    networks, budget, names = material.networks, material.options.budget, material.options.attributes

    def compute() -> dict[str, Any]:
        picked = material.picked(budget.pick)
        found = [
            find_strengths(editor, picked[name], (name,), networks.render, networks.scores, material.tracked)
            for name in names
        ]
        return {"strengths": np.concatenate(found)}

    kept = material.keep(
        "strengths", compute, editor=digest, pick=budget.pick, attributes=names, beyond=BEYOND
    )
    return kept["strengths"]


def measured(material: Material, editor: Editor, digest: str, name: str) -> Sweep:
    """The sweep of an editor over all held-out people."""
    options, people = material.options, material.held_out
    strengths = strengths_of(material, editor, digest)
    observers = Observers(material, people.points)
    parts: list[Sweep] = []
    for start in range(0, len(people.codes), options.budget.block):
        rows = slice(start, min(start + options.budget.block, len(people.codes)))

        def compute(rows: slice = rows) -> dict[str, Any]:
            found = sweep(
                editor,
                people.codes[rows],
                options.attributes,
                strengths,
                material.networks.render,
                observers.all(rows.start),
                material.tracked,
                micro_batch=material.networks.micro_batch,
            )
            material.say(f"{name}: measured {rows.stop} of {len(people.codes)} people")
            return to_arrays(found)

        asked = {"identity": options.identity, "detector": options.detector}
        parts.append(
            from_arrays(
                material.keep(
                    "sweep",
                    compute,
                    editor=digest,
                    real=people.real,
                    rows=[rows.start, rows.stop],
                    attributes=options.attributes,
                    strengths=strengths.tolist(),
                    **asked,
                )
            )
        )
    return join_sweeps(parts)


def sources_described(material: Material) -> dict[str, NDArray[np.float32]]:
    """The source photographs as the identity networks see them: observer -> [N, F]."""
    people = material.held_out
    observers = Observers(material, people.points)
    names = ("dlib", "sface") if material.options.identity else ("dlib",)

    def compute() -> dict[str, Any]:
        rows = np.arange(len(people.sources))
        return {name: getattr(observers, name)(people.sources, rows) for name in names}

    return material.keep("sources", compute, real=people.real, count=len(people.sources), observers=names)


def costs(material: Material, editor: Editor) -> dict[str, float]:
    """Milliseconds an edit alone, without rendering, at batch 32 and 1."""
    people: HeldOut = material.held_out
    codes = people.codes[:_COST_BATCH]
    with torch.no_grad():
        s = editor.encode_semantics(material.networks.render(codes))
        return {f"ms_batch_{n}": edit_cost(editor, codes, s, 0, n) for n in (_COST_BATCH, 1)}


def to_arrays(found: Sweep) -> dict[str, Any]:
    """A sweep as plain arrays."""
    out: dict[str, Any] = {
        "attributes": np.array(found.attributes),
        "strengths": found.strengths,
        "requested": found.requested,
        "wanted": found.wanted,
        "nfe": np.array(found.nfe),
    }
    out |= {f"before.{name}": rows for name, rows in found.before.items()}
    return out | {f"after.{name}": rows for name, rows in found.after.items()}


def from_arrays(arrays: dict[str, Any]) -> Sweep:
    """Undo of `to_arrays`."""

    def part(prefix: str) -> dict[str, NDArray[np.float32]]:
        return {name.removeprefix(prefix): rows for name, rows in arrays.items() if name.startswith(prefix)}

    return Sweep(
        tuple(str(name) for name in arrays["attributes"]),
        arrays["strengths"],
        arrays["requested"],
        arrays["wanted"],
        part("before."),
        part("after."),
        int(arrays["nfe"]),
    )


def reference_of(material: Material) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Training people's renderings as the judge of identity sees them, and their classes [A, M]."""
    data = material.training
    count = min(_REFERENCE, len(data.codes))
    rows = torch.linspace(0, len(data.codes) - 1, count).long()
    pixels = data.images[rows].permute(0, 2, 3, 1).contiguous().numpy()
    side = pixels.shape[1]

    def compute() -> dict[str, Any]:
        recognizer = CropRecognizer(material.networks.identity, material.networks.bundle.template_scale)
        points = np.broadcast_to(recognizer.points * side - 0.5, (count, 5, 2))
        return {"dlib": Observers(material, points).dlib(pixels, np.arange(count))}

    kept = material.keep("reference", compute, digest=hashlib.sha256(pixels.tobytes()).hexdigest())
    return kept["dlib"], (data.of(material.columns)[rows] > 0.5).numpy().T
