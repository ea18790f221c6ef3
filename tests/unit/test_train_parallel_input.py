"""What is wrong with the input of `train_parallel` is said in one line, before anything is trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sdflow_core.faces.checkpoint import save_model
from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method import train_parallel
from sdflow_core.method.train_parallel import main
from sdflow_core.records.shards import wplus_column

SMALL = {"flow": {"kind": "principal", "directions": 4, "width": 8, "blocks": 1, "matrices": 1}}
SMALL |= {"edit_map": None, "steps": 2, "batch": 8}


@pytest.fixture
def words(tmp_path: Path) -> dict[str, str]:
    """A training that works."""
    rng = np.random.default_rng(0)
    scores = {name: rng.uniform(0, 1, 40).astype(np.float32) for name in ("a", "b")}
    table: Any = pa.table({"w_plus": wplus_column(rng.normal(size=(40, 2, 4))), **scores})
    pq.write_table(table, tmp_path / "0.parquet")  # pyright: ignore
    torch.manual_seed(0)
    labeller = Labeller(LabellerConfig(attributes=("a", "b"), resolution=16, channels=(4, 4)))
    (tmp_path / "labeller").write_bytes(save_model(labeller))
    (tmp_path / "none").write_bytes(b"no model")
    (tmp_path / "none.parquet").write_bytes(b"PAR1 nothing")
    flat: Any = pa.table({"w_plus": wplus_column(np.ones((40, 2, 4))), **scores})
    pq.write_table(flat, tmp_path / "flat.pq")  # pyright: ignore
    return {
        "": str(tmp_path / "0.parquet"),
        "--scores": "a,b",
        "--labeller": str(tmp_path / "labeller"),
        "--config": json.dumps(SMALL),
        "--out": str(tmp_path / "editor"),
    }


def _said(
    words: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    given = [part for option, value in words.items() for part in (option, value) if part]
    monkeypatch.setattr(sys, "argv", ["train_parallel", *given])
    code = main()
    out, err = capsys.readouterr()
    return code, out, err


def test_good_input_gives_an_editor(
    words: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _said(words, monkeypatch, capsys)
    assert code == 0 and json.loads(out)["steps"] == 2 and not err
    assert Path(words["--out"]).exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("", "HERE/*.nothing", "HERE/*.nothing"),
        ("", "HERE/none.parquet", "none.parquet"),
        ("", "HERE/flat.pq", "the same code"),
        ("--scores", "a,c", "c"),
        ("--scores", "a,w_plus", "w_plus"),
        ("--codes", "codes", "codes"),
        ("--labeller", "HERE/gone", "HERE/gone"),
        ("--labeller", "HERE/none", "HERE/none"),
        ("--config", "{steps: 5}", "--config"),
        ("--config", '{"steps": 0}', "steps: Input should be greater than or equal to 1"),
        ("--config", '{"stops": 5}', "stops"),
        ("--config", '{"flow": {"kind": "conditional"}}', "principal"),
        ("--config", '{"batch": 64}', "fewer rows than a batch"),
        ("--device", "abacus", "--device"),
        ("--out", "HERE/no/such/folder", "--out"),
        ("--checkpoint", "HERE", "--checkpoint"),
    ],
)
def test_bad_input_is_one_line(
    option: str,
    value: str,
    said: str,
    words: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = str(tmp_path)
    code, out, err = _said({**words, option: value.replace("HERE", here)}, monkeypatch, capsys)
    assert code == 2 and out == "" and len(err.strip().splitlines()) == 1
    assert err.startswith("train_parallel: ") and said.replace("HERE", here) in err
    assert not (tmp_path / "editor").exists()


def test_of_several_processes_the_first_one_speaks(
    words: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*given: Any) -> Any:
        raise RuntimeError("Connection closed by peer\nand a long story")

    monkeypatch.setattr(sys, "argv", ["train_parallel", words[""], "--scores", "a", "--labeller", "x"])
    monkeypatch.setenv("RANK", "1")
    assert main() == 2 and capsys.readouterr().err == ""
    monkeypatch.setattr(train_parallel, "run", gone)
    assert main() == 1
    assert capsys.readouterr().err == "train_parallel: process 1 stops: Connection closed by peer\n"
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="long story"):
        main()
