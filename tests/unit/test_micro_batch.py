"""Batches that do not fit into memory: halved, remembered, said once; other errors are left alone."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from torch import Tensor

from sdflow_core.faces.micro_batch import Halving, micro_batch_for
from sdflow_core.faces.networks import Networks
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.model_store import Bundle

pytestmark = pytest.mark.weights

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1099511627776 bytes."),
]


class Small:
    """A network on a device that holds so many rows."""

    def __init__(self, fits: int, error: Exception = ERRORS[0]) -> None:
        self.fits, self.error, self.seen = fits, error, list[int]()

    def __call__(self, rows: Tensor) -> Tensor:
        self.seen.append(len(rows))
        if len(rows) > self.fits:
            raise self.error
        return rows * 2


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_batch_that_does_not_fit_is_halved(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    net, halving, rows = Small(3, error), Halving("generator"), torch.arange(10.0)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(halving.apply(net, rows), rows * 2)
        assert net.seen == [10, 5, 2, 2, 2, 2, 2]
        assert torch.equal(halving.apply(net, rows), rows * 2)
    assert net.seen[7:] == [2] * 5  # no second attempt at what is known not to fit
    assert [record.message for record in caplog.records] == [
        "generator: 10 rows do not fit into memory; going on with 5"
    ]


def test_a_batch_that_fits_is_one_call() -> None:
    net, rows = Small(16), torch.arange(16.0)
    assert torch.equal(Halving("x").apply(net, rows), rows * 2) and net.seen == [16]


def test_what_has_no_room_at_all_is_refused() -> None:
    with pytest.raises(ContractError, match="generator: not even one picture fits.*smaller resolution"):
        Halving("generator").apply(Small(0), torch.ones(4))


def test_a_real_allocation_that_fails_counts() -> None:
    def greedy(rows: Tensor) -> Tensor:
        return torch.empty(2**58) if len(rows) > 1 else rows

    assert torch.equal(Halving("x").apply(greedy, torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("w")])
def test_other_errors_pass(error: Exception) -> None:
    net = Small(0, error)
    with pytest.raises(type(error)):
        Halving("x").apply(net, torch.ones(4))
    assert net.seen == [4]


def bundle(resolution: int) -> Bundle:
    return Bundle.model_construct(resolution=resolution, template_scale=1.0)


def test_networks_halve_what_they_are_given() -> None:
    calls: Counter[str] = Counter()
    networks = Networks(None, bundle(64), micro_batch=4, calls=calls)  # type: ignore[arg-type]
    net, rows = Small(2), torch.arange(9.0)[:, None]
    assert torch.equal(networks.batched("generator", net, rows), rows * 2)
    assert net.seen == [4, 2, 2, 2, 2, 2, 2]  # the last micro-batch is still filled up
    assert calls == {"generator": 3}
    other = Small(4)
    networks.batched("encoder", other, rows)
    assert other.seen == [4, 4, 4]


def test_fewer_rows_where_pictures_are_large() -> None:
    sides = (8, 64, 128, 256, 512, 1024, 4096)
    assert [micro_batch_for(side) for side in sides] == [16, 16, 16, 16, 4, 1, 1]
    assert Networks(None, bundle(64)).micro_batch == 16  # type: ignore[arg-type]
    assert Networks(None, bundle(512)).micro_batch == 4  # type: ignore[arg-type]


def test_steps_ask_for_what_suits_the_bundle() -> None:
    from tasks import recipes
    from tasks.edit_plan import edit_config

    assert recipes.micro_batch(bundle(64)) == recipes.MICRO_BATCH == 16
    assert recipes.micro_batch(bundle(1024)) == 1
    assert edit_config(None) == edit_config(None, bundle(64)) == edit_config({}, bundle(256))
    assert edit_config({"tries": 3}, bundle(512)).micro_batch == 4
    assert edit_config({"tries": 3}, bundle(512)).tries == 3
    assert edit_config({"micro_batch": 7}, bundle(512)).micro_batch == 7
