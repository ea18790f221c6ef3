"""Hostile weight files: nothing in them runs, nothing large is made, and each is refused with its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdflow_core.records.errors import ContractError
from sdflow_core.weights.front import inspect, load_generator
from sdflow_core.weights.reading import Record, read_weights
from tests import hostile_weight_sizes
from tests import weight_makers as make
from tests.hostile_weights import HOSTILE

pytestmark = [pytest.mark.weights, pytest.mark.timeout(60)]

ROOT = Path(__file__).resolve().parents[2]

# Runs in a process of its own. What Python itself calls an import, an execution or a process is noted, and
# so is every opening of another file than the one to be read. Says what each file cost.
PROBE = """
import codecs, json, sys, time
import torch, hashlib
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.reading import read_weights

def peak():
    # not ru_maxrss, which a process inherits from the one that started it
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

WATCHED = ("import", "exec", "compile", "os.", "subprocess.", "pickle.", "socket.", "marshal.", "ctypes.")
events, watching, path = [], False, ""

def note(event, args):
    other = event == "open" and str(args[0]) != path and not isinstance(args[0], int)  # its own handle
    if watching and (other or event.startswith(WATCHED)):
        events.append(f"{event} {args!r}"[:200])

sys.addaudithook(note)
codecs.encode("a", "latin-1")
for warm in (sys.argv[1], sys.argv[2]):  # what reading imports on first use
    path = warm
    read_weights(warm)
for path in sys.argv[3:]:
    events.clear()
    before, start, reason = peak(), time.perf_counter(), None
    watching = True
    try:
        read_weights(path)
    except ContractError as error:
        reason = str(error)
    watching = False
    took = time.perf_counter() - start
    print(json.dumps([path, reason, took, before, peak(), events]), flush=True)
"""


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"{name}.pt"
    data, reason = HOSTILE[name](canary)
    path.write_bytes(data)
    for read in (read_weights, inspect):
        with pytest.raises(ContractError, match=reason) as caught:
            read(path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 1500
    assert not canary.exists()
    assert sorted(tmp_path.iterdir()) == [path]


def test_there_are_enough_of_them_and_they_do_bite(tmp_path: Path) -> None:
    assert len(HOSTILE) >= 25 and hostile_weight_sizes.__name__ in {f.__module__ for f in HOSTILE.values()}
    canary = tmp_path / "canary"
    data, _ = HOSTILE["os-system"](canary)
    make.pickle.loads(data)
    assert canary.exists()


def test_none_of_them_imports_executes_or_takes_much_memory(tmp_path: Path) -> None:
    canary, paths = tmp_path / "canary", []
    for name, build in sorted(HOSTILE.items()):
        paths.append(tmp_path / f"{name}.pt")
        paths[-1].write_bytes(build(canary)[0])
    make.rosinality_file(tmp_path / "sound.pt", 8)
    make.nvidia_pickle(tmp_path / "sound.pkl", 8)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROBE,
            str(tmp_path / "sound.pt"),
            str(tmp_path / "sound.pkl"),
            *map(str, paths),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row[0]) for row in found] == paths
    assert not canary.exists()
    for path, reason, _, before, after, events in found:
        assert reason is not None and path in reason
        assert events == [], path
        assert after - before < 300e6, path
    assert found[-1][4] < 1e9  # with Python and torch themselves


MEMORY = """
import resource, sys, torch
from sdflow_core.weights import front
front.load_generator(sys.argv[1])
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
generator = front.load_generator(sys.argv[2])
lines = open("/proc/self/status")
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
print(peak - before, sum(p.numel() for p in generator.parameters()))
"""


def test_a_large_file_is_not_held_twice(tmp_path: Path) -> None:
    make.rosinality_file(tmp_path / "small.pt", 8)
    sizes = {"style_dim": 512, "base": 32768, "top": 512}
    make.rosinality_file(tmp_path / "large.pt", 128, latent_avg=make.torch.zeros(512), **sizes)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "small.pt"), str(tmp_path / "large.pt")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    grown, numbers = map(int, done.stdout.split())
    size = (tmp_path / "large.pt").stat().st_size
    assert 4 * numbers > 0.9 * size > 90e6
    assert grown < 1.3 * size


def test_the_source_text_in_a_pickle_is_not_looked_at(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    make.nvidia_pickle(tmp_path / "g.pkl", 16, source=f"open({str(canary)!r}, 'w')\nraise SystemExit")
    content = read_weights(tmp_path / "g.pkl").content
    assert isinstance(content["G_ema"], Record) and "module_src" not in content["G_ema"].state
    load_generator(tmp_path / "g.pkl")
    assert not canary.exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="cannot be opened"):
        read_weights(tmp_path / "absent.pt")
    with pytest.raises(ContractError, match="no regular file|cannot be opened"):
        read_weights(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ContractError, match="no regular file"):
        read_weights(tmp_path / "pipe.pt")
    make.rosinality_file(tmp_path / "g.pt", 16)
    with pytest.raises(ContractError, match="more than 1000"):
        read_weights(tmp_path / "g.pt", limit=1000)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_any_damage_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    """Every cut, and bytes changed one at a time: read as something, or refused; never another error."""
    path = tmp_path / "g"
    if kind == "pickle":
        make.nvidia_pickle(path, 8, top=1, base=8, style_dim=1, depth=1)
    else:
        make.rosinality_file(path, 8, top=1, base=8, style_dim=1, depth=1, legacy=kind == "legacy")
    data = path.read_bytes()
    step = max(len(data) // 60, 1)
    for at in range(0, len(data), step):
        with pytest.raises(ContractError):
            read_damaged(path, data[:at])
        changed = bytearray(data)
        changed[at] ^= 0xFF
        try:
            read_damaged(path, bytes(changed))
        except ContractError as error:
            assert str(path) in str(error)


def read_damaged(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_weights(path)
