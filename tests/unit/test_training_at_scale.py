"""Codes from Parquet, an order without a state, several processes: the same training, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from sdflow_core.faces.checkpoint import save_model
from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import attributes_of
from sdflow_core.method.parallel import ALONE, Group
from sdflow_core.method.parquet_source import ParquetSource
from sdflow_core.method.principal import PrincipalConfig
from sdflow_core.method.row_order import RowOrder
from sdflow_core.method.training import TrainingConfig, train_on_source
from sdflow_core.records.errors import ContractError, CorruptError
from sdflow_core.records.shards import wplus_column

ROWS, DIM, NAMES = 3, 4, ("a", "b")
CONFIG = TrainingConfig(
    flow=PrincipalConfig(directions=6, width=16, blocks=1, matrices=2), edit_map=None, steps=8, batch=32
)


def people(n: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    phi = torch.randn(n, 2, generator=rng).clamp(-1.9, 1.9)
    codes = torch.randn(n, ROWS, DIM, generator=rng)
    codes[:, 0, :2] += phi
    return codes, attributes_of(phi)


def write(folder: Path, n: int, files: int = 2, group: int = 50) -> tuple[list[str], Tensor, Tensor]:
    codes, scores = people(n)
    paths: list[str] = []
    for number, rows in enumerate(torch.arange(n).chunk(files)):
        columns: dict[str, Any] = {"w_plus": wplus_column(codes[rows].numpy())}
        columns |= {name: scores[rows, i].numpy() for i, name in enumerate(NAMES)}
        path = folder / f"{number}.parquet"
        writer: Any = pq
        writer.write_table(pa.table(columns), path, row_group_size=group)
        paths.append(str(path))
    return paths, codes, scores


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    torch.manual_seed(0)
    return Labeller(LabellerConfig(attributes=NAMES, resolution=16, channels=(4, 4))).eval()


def test_a_source_of_shards_gives_what_was_written(tmp_path: Path) -> None:
    paths, codes, scores = write(tmp_path, 230)
    source = ParquetSource(paths, scores=NAMES, kept_groups=2)
    assert (source.rows, source.shape, source.attributes) == (230, (ROWS, DIM), 2)
    assert list(source.blocks) == [50, 50, 15, 50, 50, 15]
    index = torch.randint(230, (400,), generator=torch.Generator().manual_seed(1))
    read = source.read(index)
    assert torch.equal(read[0], codes[index]) and torch.equal(read[1], scores[index])
    for size in (1000, 64, 7):
        parts = list(source.batches(size))
        assert all(len(part[0]) == size for part in parts[:-1])
        assert torch.equal(torch.cat([part[0] for part in parts]), codes)
        assert torch.equal(torch.cat([part[1] for part in parts]), scores)
    elsewhere = ParquetSource(paths, scores=scores)
    assert torch.equal(elsewhere.read(index)[1], scores[index])
    opened = ParquetSource([partial(open, path, "rb") for path in paths], scores=NAMES)
    assert torch.equal(opened.read(index)[0], codes[index])


def test_shards_that_do_not_fit_are_named(tmp_path: Path) -> None:
    paths, _, scores = write(tmp_path, 60)
    for files, how, words in [
        ([], {}, "at least one file"),
        (paths, {"scores": ("a", "c")}, r"without \['c'\]"),
        (paths, {"codes": "a"}, "columns of a shard"),
        (paths, {"scores": scores[:5]}, "60 rows"),
    ]:
        with pytest.raises(ContractError, match=words):
            ParquetSource(files, **how)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(CorruptError, match="broken.parquet"):
        ParquetSource([str(tmp_path / "broken.parquet")])


@pytest.mark.parametrize(("blocks", "window"), [([100], 8), ([7] * 15, 4), ([50, 3, 47, 20], 2)])
def test_each_epoch_gives_every_row_at_most_once_in_another_order(blocks: list[int], window: int) -> None:
    count, batch = sum(blocks), 16
    order = RowOrder(blocks, batch, seed=3, window=window)
    epochs = [
        torch.cat([order.rows(epoch * order.steps + step) for step in range(order.steps)])
        for epoch in range(3)
    ]
    for rows in epochs:
        assert len(rows) == order.steps * batch == len(set(rows.tolist()))
        assert rows.min() >= 0 and rows.max() < count
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], torch.arange(len(epochs[0])))
    later = RowOrder(blocks, batch, seed=3, window=window)
    assert torch.equal(later.rows(order.steps + 2), order.rows(order.steps + 2))  # no state
    other = RowOrder(blocks, batch, seed=4, window=window)
    assert not torch.equal(other.rows(0), order.rows(0))


def test_a_batch_touches_few_blocks() -> None:
    order = RowOrder([10] * 100, 16, seed=0, window=4)
    for step in range(order.steps):
        assert len(set((order.rows(step) // 10).tolist())) <= 8


def test_held_out_rows_are_never_given() -> None:
    without = torch.tensor([0, 3, 17, 40, 41, 99])
    order = RowOrder([30, 30, 40], 10, seed=0, window=2, without=without)
    assert order.count == 94
    seen = {row for step in range(3 * order.steps) for row in order.rows(step).tolist()}
    assert not seen & set(without.tolist()) and len(seen) > 80
    with pytest.raises(ContractError, match="fewer rows than a batch"):
        RowOrder([5, 4], 10, seed=0)


def test_training_from_shards_is_resumed_and_reads_each_row_group_a_few_times(
    tmp_path: Path, labeller: Labeller
) -> None:
    paths, codes, scores = write(tmp_path, 800, files=4, group=25)
    source = ParquetSource(paths, scores=NAMES)
    trained = train_on_source(source, labeller, CONFIG)
    again = train_on_source(ParquetSource(paths, scores=NAMES), labeller, CONFIG)
    assert trained.history == again.history
    # the survey reads all 32; 8 batches lie in three windows of 8 of them at most
    assert source.loaded <= 32 + 24
    found, wanted = survey(source), survey(TensorSource(codes, scores))
    assert torch.allclose(found.mean, wanted.mean) and found.digest == wanted.digest


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Codes, wide ones: ten times the rows, the same peak of numpy and Arrow."""
    peaks: list[int] = []
    for n in (2_000, 20_000):
        path = tmp_path / f"{n}.parquet"
        kind: Any = pa.schema([("w_plus", wplus_column(np.zeros((1, 4, 32))).type), ("a", pa.float32())])
        writer: Any = pq.ParquetWriter(path, kind)
        group = [wplus_column(np.random.default_rng(0).normal(size=(100, 4, 32))), np.full(100, 0.3, "f")]
        for _ in range(n // 100):
            writer.write_table(pa.Table.from_arrays([group[0], pa.array(group[1])], schema=kind))
        writer.close()
        source = ParquetSource([str(path)], scores=("a",), kept_groups=16)
        order = RowOrder(source.blocks, 64, seed=0)
        pa_before = pa.total_allocated_bytes()
        tracemalloc.start()
        held = 0
        for step in range(0, order.steps, 5):
            source.read(order.rows(step))
            held = max(held, len(source._groups))
        for _ in source.batches(256):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1] + max(pa.total_allocated_bytes() - pa_before, 0))
        tracemalloc.stop()
        assert held <= 16
        assert source.loaded >= n // 100
    assert peaks[1] < 1.5 * peaks[0]


def test_shares_of_a_batch_are_the_batch() -> None:
    whole = torch.arange(12)
    assert torch.equal(torch.cat([Group(rank, 3).share(whole) for rank in range(3)]).sort().values, whole)
    assert torch.equal(ALONE.share(whole), whole)
    Group(0, 3).check(12)
    with pytest.raises(ContractError, match="shared evenly"):
        Group(0, 3).check(13)


def torchrun(processes: int, folder: Path, config: TrainingConfig, *more: str) -> dict[str, Any]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(start if processes > 1 else ()), "-m", "sdflow_core.method.train_parallel"]
    command += [str(folder / "*.parquet"), "--scores", ",".join(NAMES), "--history", *more]
    command += ["--labeller", str(folder / "labeller.safetensors"), "--config", config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path, labeller: Labeller) -> None:
    write(tmp_path, 400)
    (tmp_path / "labeller.safetensors").write_bytes(save_model(labeller))
    config = CONFIG.model_copy(update={"steps": 30, "learning_rate": 5e-3})
    one = torchrun(1, tmp_path, config, "--out", str(tmp_path / "one"))
    two = torchrun(2, tmp_path, config, "--checkpoint", str(tmp_path / "state"))
    assert (tmp_path / "one").exists()
    assert (one["processes"], two["processes"]) == (1, 2)
    curves = [[losses["matching"] for losses in found["history"]] for found in (one, two)]
    assert len(curves[0]) == 30
    assert curves[0] == pytest.approx(curves[1], rel=2e-4)
    assert curves[0][0] != pytest.approx(curves[0][-1], rel=1e-2)  # a curve, not a constant
    finished = torchrun(1, tmp_path, config, "--checkpoint", str(tmp_path / "state"))
    assert finished["history"] == two["history"]
