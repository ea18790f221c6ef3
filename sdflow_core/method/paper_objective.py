"""The published objective, its switches, and the rows of the ablation.

    MSE(E_s(x), classifier) + NLL(w | s) / (L D) + MSE(E_s(G(w')), s') + MSE(w', w),

s = E_s(x), w' = F^-1(F(w, s), s'), s' = s with one attribute of each sample replaced by U(0, 1).
Source: Li et al., "SDFlow", arXiv 2309.05314, section 3.3, all weights 1. Distillation and consistency are
those of `objectives` with `score_loss="mse"`; the two terms below differ from ours.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sdflow_core.method.flow_laws import base_log_density
from sdflow_core.records.config import Config


class PaperObjective(Config):
    """Terms and their weights; 0 switches a term off, and it then costs nothing.

    Attributes:
        semantics: `joint` learns the semantic encoder with the flow, through all terms; `frozen` gives the
            flow the classifier's scores and reads edited pictures by the classifier itself, which never
            changes.
        distillation: Semantic encoder against the classifier; without meaning when frozen.
        density: Negative log-likelihood a number of the code.
        consistency: Attributes read from the edited picture against s'.
        closeness: Edited code against its source, in raw units of W+.
    """

    semantics: Literal["joint", "frozen"] = "joint"
    distillation: float = Field(default=1.0, ge=0)
    density: float = Field(default=1.0, ge=0)
    consistency: float = Field(default=1.0, ge=0)
    closeness: float = Field(default=1.0, ge=0)

    @property
    def edits(self) -> bool:
        """Does a term need the edited code?"""
        return self.consistency > 0 or self.closeness > 0

    @property
    def reads_images(self) -> bool:
        """Does a term need the picture of the unedited code?"""
        return self.semantics == "joint" and (self.distillation > 0 or self.density > 0 or self.edits)


PUBLISHED = PaperObjective()
# StyleFlow's way, arXiv 2008.02401: likelihood alone, given the scores of a classifier
STYLEFLOW = PaperObjective(semantics="frozen", distillation=0.0, consistency=0.0, closeness=0.0)
ABLATIONS: dict[str, PaperObjective] = {
    "published": PUBLISHED,
    "frozen semantics": PaperObjective(semantics="frozen", distillation=0.0),
    "no consistency": PaperObjective(consistency=0.0),
    "no closeness": PaperObjective(closeness=0.0),
    "no density": PaperObjective(density=0.0),
    "no distillation": PaperObjective(distillation=0.0),
    "styleflow": STYLEFLOW,
}


def nll_of_base(z: Tensor, log_det: Tensor) -> Tensor:
    """-(log N(z; 0, I) + log_det) / (L D), mean over the batch -> scalar, nats a number of the code.

    For where z is at hand already: one way through the flow serves likelihood and edit.

    Args:
        z: Base codes [B, L, D].
        log_det: log |det dz/dw+| [B].

    Example:
        >>> import torch
        >>> round(float(nll_of_base(torch.zeros(2, 3, 4), torch.zeros(2))), 4)
        0.9189
    """
    return -(base_log_density(z) + log_det).mean() / (z.shape[1] * z.shape[2])


def raw_closeness(edited: Tensor, source: Tensor) -> Tensor:
    """Mean square distance of two codes [B, L, D] in units of W+ -> scalar."""
    return F.mse_loss(edited, source)
