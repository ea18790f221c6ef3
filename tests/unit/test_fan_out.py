"""Handing shards out: bounded, in order, ended by the first failure; and what travels to a cluster."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdflow_core.records.errors import ContractError, SDFlowError
from tasks.fan_out import in_order


class Numbers:
    """Doubles numbers, ending them in an order of its own; some fail."""

    def __init__(self, window: int, seed: int = 0, bad: int | None = None) -> None:
        self._window, self._chance, self._bad = window, random.Random(seed), bad
        self.under_way: set[int] = set()
        self.most = 0
        self.begun: list[int] = []
        self.stopped: list[int] | None = None

    def window(self) -> int:
        return self._window

    def start(self, shard: Any) -> Any:
        self.begun.append(shard)
        self.under_way.add(shard)
        self.most = max(self.most, len(self.under_way))
        return shard

    def ended(self, begun: Sequence[Any]) -> Sequence[Any]:
        assert set(begun) == self.under_way
        return self._chance.sample(list(begun), self._chance.randint(1, len(begun)))

    def result(self, one: Any) -> Any:
        self.under_way.remove(one)
        if one == self._bad:
            raise SDFlowError("bad")
        return 2 * one

    def stop(self, begun: Sequence[Any]) -> None:
        self.stopped = sorted(begun)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(0, 1000))
def test_all_in_order_and_never_more_than_the_window(shards: int, window: int, seed: int) -> None:
    batch = Numbers(window, seed)
    assert in_order(batch, range(shards)) == [2 * n for n in range(shards)]
    assert batch.most == min(shards, window)
    assert batch.begun == list(range(shards)) and batch.stopped is None


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 1000), st.data())
def test_the_first_failure_begins_nothing_more_and_stops_the_rest(
    shards: int, window: int, seed: int, data: st.DataObject
) -> None:
    bad = data.draw(st.integers(0, shards - 1))
    batch = Numbers(window, seed, bad)
    with pytest.raises(SDFlowError, match="bad"):
        in_order(batch, range(shards))
    assert batch.begun[-1] < bad + 2 * window
    assert set(batch.stopped or []) == batch.under_way


@pytest.mark.parametrize(
    ("name", "value"),
    [("RUNNER", "dask"), ("GPUS_PER_TASK", "-1"), ("RAY_TASKS", "many"), ("WORKERS", "two")],
)
def test_a_setting_that_is_none_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.runtime import settings

    monkeypatch.setenv(f"SDFLOW_{name}", value)
    with pytest.raises(ContractError, match=f"SDFLOW_{name}") as caught:
        settings()
    assert caught.value.found == value


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1), ("cuda:1", 1)])
def test_a_cuda_device_asks_for_a_gpu(device: str, gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.runtime import settings

    monkeypatch.setenv("SDFLOW_DEVICE", device)
    assert settings().gpus == gpus
    monkeypatch.setenv("SDFLOW_GPUS_PER_TASK", "0.5")
    assert settings().gpus == 0.5


def test_an_order_carries_settings_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.away import order_for
    from tasks.latents import invert_shard
    from tasks.step import Job

    monkeypatch.setenv("SDFLOW_DEVICE", "cuda")
    for name in ("AWS_SECRET_ACCESS_KEY", "SDFLOW_DATABASE_URL", "PREFECT_API_KEY"):
        monkeypatch.setenv(name, "a secret")
    order = order_for(invert_shard, Job(store="s3://b/p", dataset="people", parent="run"))
    assert order.step == "tasks.latents:invert_shard"
    assert order.settings == {"SDFLOW_DEVICE": "cuda"}
    assert len(order.model_dump_json()) < 1000


def test_an_error_that_cannot_cross_becomes_one_that_can() -> None:
    from tasks import away

    class Local(Exception):
        pass

    assert away._crosses(ContractError("x", expected=1, found=2, where="here", todo="that"))  # pyright: ignore
    assert not away._crosses(Local("x"))  # pyright: ignore
