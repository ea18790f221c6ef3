"""`sdflow plan`: one object for programs, a table for people, one clear message for nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cli.main as command
from sdflow_core.capacity.prices import SHIPPED_PRICES
from tests.planned import rates_document


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = command.app(["plan", *words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert len(out.splitlines()) == 1
    return code, json.loads(out), err


def test_a_plan_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--images", "1e6", "--edits", "3", "--device", "h200", "--devices", "8")
    code, said, err = _run(capsys, *words)
    assert (code, err) == (0, "")
    assert (said["workload"]["images"], said["workload"]["devices"]) == (1_000_000, 8)
    total = said["total"]
    assert total["device_hours"] > 0 and total["requests"]["PUT"] > 6_000_000 and total["money"]["total"] > 0
    parts = sum(said["stories"][name]["money"]["total"] for name in said["total_of"])
    assert total["money"]["total"] == pytest.approx(parts, rel=1e-6)
    for name, rate in said["rates"].items():
        assert rate["source"] in ("measured", "extrapolated", "assumed"), name
    assert said["measured"]["command"].startswith("python benchmarks/measure_rates.py")


def test_people_read_sources_and_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.app(["plan", "--images", "20000", "--device", "h200", "--speedup", "40"]) == 0
    out = capsys.readouterr().out
    assert "ASSUMED: the networks run 40 times as fast on h200 (--speedup)" in out
    assert "example prices" in out
    for name in ("ingest", "publish", "(nothing_new)", "(one_percent)", "(refresh)", "crops", "before"):
        assert name in out


def test_nothing_is_opened(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = tmp_path / "nowhere"
    assert command.app(["plan", "--images", "10", "--store", str(store)]) == 0
    capsys.readouterr()
    assert not store.exists()


def test_own_prices_and_rates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (rates := tmp_path / "rates.json").write_text(json.dumps(rates_document(invert_device=36.0)))
    (prices := tmp_path / "prices.toml").write_text(
        SHIPPED_PRICES.read_text().replace("cpu = 0.05", "cpu = 2")
    )
    words = ("--images", "1000", "--rates", str(rates), "--prices", str(prices))
    code, said, _ = _run(capsys, *words)
    assert code == 0
    assert said["stories"]["invert"]["device_hours"] == 10
    assert said["stories"]["invert"]["money"]["compute"] == 20


@pytest.mark.parametrize(
    "words, told",
    [
        (["--images", "0"], "--images"),
        (["--images", "-5"], "--images"),
        (["--images", "nan"], "--images"),
        (["--images", "inf"], "--images"),
        (["--images", "1e30"], "--images"),
        (["--images", "1e12"], "images"),
        (["--images", "lots"], "'lots'"),
        (["--images", ""], "images"),
        ([], "--images"),
        (["--images", "5", "--edits", "0"], "--edits"),
        (["--images", "5", "--devices", "nan"], "--devices"),
        (["--images", "5", "--devices", "1e9"], "devices"),
        (["--images", "5", "--shard-rows", "0"], "--shard-rows"),
        (["--images", "5", "--image-bytes", "-1"], "--image-bytes"),
        (["--images", "5", "--image-px", "1e6"], "image_px"),
        (["--images", "5", "--failure-rate", "nan"], "failure_rate"),
        (["--images", "5", "--failure-rate", "1.5"], "failure_rate"),
        (["--images", "5", "--speedup", "0"], "speedup"),
        (["--images", "5", "--speedup", "inf"], "speedup"),
        (["--images", "5", "--device", "abacus"], "cpu, h200"),
        (["--images", "5", "--device", ""], "cpu, h200"),
        (["--images", "5", "--rates", "nowhere.json"], "nowhere.json"),
        (["--images", "5", "--prices", "nowhere.toml"], "nowhere.toml"),
        (["--images", "5", "--prices", "."], "price table"),
    ],
)
def test_nonsense_is_told_once(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, err = _run(capsys, *words)
    assert code == 2 and said["error"]["exit_code"] == 2
    assert told in err and err.count("sdflow:") == 1 and len(err.splitlines()) == 1
