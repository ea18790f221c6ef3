"""What an editor learns from: pictures of large generators are kept small, scores are those of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdflow_core.faces.networks import Networks, to_uint8
from sdflow_core.method import training_set
from sdflow_core.method.training_set import EditorTraining, make_training_set
from sdflow_core.method.witness import PictureWitness
from sdflow_core.records.objects import LocalStore
from sdflow_core.weights.embedded import install_embedded
from sdflow_core.weights.model_store import ModelStore


def test_large_pictures_are_kept_small_and_scored_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))
    networks = Networks(ModelStore(store), install_embedded(store), micro_batch=4)
    codes = networks.prior.sample(3, torch.Generator().manual_seed(0), truncation=0.7)
    config = EditorTraining(prior_samples=6)
    whole = make_training_set(networks, codes, config)
    assert whole.images.shape == (9, 3, 64, 64) and whole.images.dtype == torch.uint8
    shown = torch.from_numpy(to_uint8(networks.render(whole.codes))).permute(0, 3, 1, 2)
    assert torch.equal(whole.images, shown)
    monkeypatch.setattr(training_set, "KEPT_SIDE_PX", 32)
    monkeypatch.setattr(training_set, "_LARGE_CHUNK", 4)
    small = make_training_set(networks, codes, config)
    assert small.images.shape == (9, 3, 32, 32)
    assert torch.equal(small.codes, whole.codes) and torch.equal(small.scores, whole.scores)
    halved = whole.images.float().unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5))
    assert float((small.images.float() - halved).abs().mean()) < 4
    # who is seen on a small picture is who is seen on the whole one
    people = [
        PictureWitness(networks, one.images, [0, 1]).describe(torch.arange(9), one.codes)
        for one in (whole, small)
    ]
    alike = (people[0] @ people[1].T).numpy()
    assert (alike.argmax(1) == np.arange(9)).all()
