"""The natural ceiling: two photographs of one person that differ in an attribute by their labels.

Nobody edits anything here. How far apart does the judge put them, and how many other attributes agree? An
edit that does better keeps more than a camera does on another day.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.editors.material import Material
from benchmarks.editors.observers import Observers
from sdflow_core.faces.networks import to_tensor

_CLEAR = 0.1  # labels nearer to one half than this say nothing


def natural_pairs(people: NDArray[np.str_], values: NDArray[np.float64], most: int) -> list[tuple[int, int]]:
    """One pair a person at most: photographs whose labels are clearly on different sides.

    Args:
        people: [N] names.
        values: [N] labels of one attribute in [0, 1]; NaN where there is none.
        most: Pairs.
    """
    pairs: list[tuple[int, int]] = []
    for person in np.unique(people):
        rows = np.flatnonzero(people == person)
        yes = [int(i) for i in rows if values[i] > 0.5 + _CLEAR]
        no = [int(i) for i in rows if values[i] < 0.5 - _CLEAR]
        if yes and no:
            pairs.append((yes[0], no[0]))
    return pairs[:most]


def ceiling(material: Material) -> dict[str, Any]:
    """Attribute -> pairs, distance by the judge, share of the other attributes that are seen alike."""
    photographs, tracked = material.test_photographs, material.tracked
    budget, out = material.options.budget, dict[str, Any]()
    for name in material.options.attributes:
        values = np.array([material.labels.get(n, {}).get(name, np.nan) for n in photographs.names])
        pairs = natural_pairs(photographs.people, values, budget.ceiling)
        if not pairs:
            out[name] = {"pairs": 0}
            continue

        def compute(pairs: list[tuple[int, int]] = pairs) -> dict[str, Any]:
            observers = Observers(material, photographs.points)
            rows = np.array(pairs)
            sides = [photographs.images[rows[:, i]] for i in (0, 1)]
            descriptors = [observers.dlib(sides[i], rows[:, i]) for i in (0, 1)]
            scores = [material.networks.scores(to_tensor(side)).numpy() for side in sides]
            judged = [material.networks.judged(to_tensor(side)).numpy() for side in sides]
            return {
                "distance": np.linalg.norm(descriptors[0] - descriptors[1], axis=1),
                "labeller": (scores[0] > 0.5) == (scores[1] > 0.5),
                "judge": (judged[0] > 0.5) == (judged[1] > 0.5),
            }

        kept = material.keep("ceiling", compute, attribute=name, pairs=pairs)
        others = [i for i, other in enumerate(tracked) if other != name]
        out[name] = {
            "pairs": len(pairs),
            "distance": float(kept["distance"].mean()),
            "preserved_labeller": float(kept["labeller"][:, others].mean()),
            "preserved_judge": float(kept["judge"][:, others].mean()),
        }
    return out
