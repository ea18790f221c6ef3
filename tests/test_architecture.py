"""The house rules as tests: who imports whom, what importing does, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cli", "flows", "tasks", "sdflow_core")
HOUSE = (*PACKAGES, "embedded_models", "benchmarks", "deployments", "tests")
MAX_LINES = 400

# Runs in a process with an empty environment. Any connection, server or process is an error, and so is a file
# that is opened for writing.
PROBE = """
import sys, importlib
FORBIDDEN = {
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork"
}
def guard(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen",
    "os.fork"):
        # Python itself and ctypes may ask the machine's own tools for a library's name; nothing of ours does.
        raise RuntimeError(f"importing did {event} {args!r}")
    if event == "open" and len(args) > 1 and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        raise RuntimeError(f"importing opened {args[0]!r} for writing")
sys.dont_write_bytecode = True
sys.addaudithook(guard)
for name in sys.argv[1:]:
    importlib.import_module(name)
print("torch" if "torch" in sys.modules else "light")
"""


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def probe(modules: list[str], home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *modules],
        cwd=ROOT,
        env={"HOME": str(home), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def assert_untouched(home: Path) -> None:
    # Importing Prefect makes this folder, empty; that is its own affair.
    left = [path for path in home.rglob("*") if path != home / ".prefect"]
    assert not left, "importing wrote into the home folder"


def test_import_contracts() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["flows", "cli"])
def test_importing_flows_and_cli_opens_nothing_and_loads_no_torch(package: str, tmp_path: Path) -> None:
    modules = [module(path) for path in files(package)]
    if not modules:
        pytest.skip(f"{package} has no module yet")
    assert probe([name for name in modules if not name.endswith("__main__")], tmp_path) == "light"
    assert_untouched(tmp_path)


@pytest.mark.parametrize("package", ["tasks", "sdflow_core.records", "sdflow_core"])
def test_importing_opens_nothing(package: str, tmp_path: Path) -> None:
    modules = [module(path) for path in files(package.replace(".", "/"))]
    if not modules:
        pytest.skip(f"{package} has no module yet")
    loaded = probe(modules, tmp_path)
    if package == "sdflow_core.records":
        assert loaded == "light"
    assert_untouched(tmp_path)


def test_only_step_imports_prefects_task() -> None:
    for path in files(*PACKAGES):
        if path.relative_to(ROOT).as_posix() == "tasks/step.py":
            continue
        assert not {"prefect.task", "prefect.tasks"} & imported(path), path
        text = path.read_text("utf-8")
        assert "prefect.task(" not in text and "@prefect.task" not in text, path


def test_core_knows_no_orchestrator_and_no_client_of_a_store() -> None:
    strangers = {"prefect", "s3fs", "boto3", "botocore", "aiobotocore", "obstore"}
    for path in files("sdflow_core"):
        assert not strangers & {name.partition(".")[0] for name in imported(path)}, path


def test_files_are_rooms_not_houses() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in files(*HOUSE)
        if (lines := count(path)) > MAX_LINES
    }
    assert not long


def count(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_no_rooms_for_leftovers() -> None:
    names = {path.stem for path in files(*HOUSE)} | {path.parent.name for path in files(*HOUSE)}
    assert not names & {"utils", "util", "helpers", "manager", "common", "misc"}


def test_modules_say_what_they_are() -> None:
    for path in files(*PACKAGES):
        if count(path):
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), f"{path} has no docstring"


def test_no_module_is_named_like_one_of_pythons_own() -> None:
    # File entrypoints put a folder first on sys.path; a flows/queue.py would then hide Python's.
    own = sys.stdlib_module_names
    for path in files("flows", "tasks", "cli"):
        assert path.stem not in own or path.stem.startswith("__"), path


def test_no_two_configurations_share_a_name() -> None:
    bases = ("Config", "NetworkConfig")
    named: dict[str, list[str]] = {}
    for path in files("sdflow_core"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & set(bases):
                named.setdefault(node.name, []).append(module(path))
    twice = {name: places for name, places in named.items() if len(places) > 1 and name not in bases}
    assert len(named) > 20 and not twice
