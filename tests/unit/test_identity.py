"""Identity vectors: OpenCV's own alignment and result, whatever the batch or thread; drawn pictures only."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from sdflow_core.faces.detect import packaged_model
from sdflow_core.faces.identity import SAME_PERSON_COSINE, Identity, default_identity
from sdflow_core.records.errors import ContractError

RNG = np.random.default_rng(11)
POINTS = np.array([[41.0, 52], [78, 50], [60, 74], [44, 95], [75, 94]])


def smooth(count: int) -> np.ndarray:
    coarse = RNG.integers(0, 256, (count, 10, 10, 3), dtype=np.uint8)
    return np.stack([cv2.resize(c, (128, 128), interpolation=cv2.INTER_CUBIC) for c in coarse])


IMAGES = smooth(5)
ALL_POINTS = np.stack([POINTS + RNG.normal(0, 1.5, (5, 2)) for _ in IMAGES])


@pytest.fixture(scope="module")
def identity() -> Identity:
    return default_identity()


def test_equal_to_opencvs_own_alignment(identity: Identity) -> None:
    own = cv2.FaceRecognizerSF.create(str(packaged_model("face_recognition_sface_2021dec_int8bq.onnx")), "")
    got = identity.embed(IMAGES, ALL_POINTS)
    assert got.shape == (5, 128) and got.dtype == np.float32
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    for image, points, row in zip(IMAGES, ALL_POINTS, got, strict=True):
        found = np.concatenate([[0, 0, 1, 1], points.ravel(), [1]]).astype(np.float32)[None]
        vector = own.feature(own.alignCrop(np.ascontiguousarray(image[:, :, ::-1]), found))[0]
        assert float(vector @ row) / float(np.linalg.norm(vector)) > 0.999


def test_rows_do_not_depend_on_their_neighbours(identity: Identity) -> None:
    together = identity.embed(IMAGES, ALL_POINTS)
    assert np.array_equal(identity.embed(IMAGES[::-1], ALL_POINTS[::-1])[::-1], together)
    assert np.array_equal(identity.embed(IMAGES[2:3], ALL_POINTS[2:3])[0], together[2])
    with ThreadPoolExecutor(3) as pool:
        rows = list(pool.map(lambda k: identity.embed(IMAGES[k : k + 1], ALL_POINTS[k : k + 1])[0], range(5)))
    assert np.array_equal(np.stack(rows), together)


def test_the_same_face_larger_or_turned_is_the_same_person(identity: Identity) -> None:
    big = np.asarray(cv2.resize(IMAGES[0], (1024, 1024), interpolation=cv2.INTER_CUBIC), np.uint8)
    matrix = cv2.getRotationMatrix2D((64, 64), 20, 0.9)
    turned = np.asarray(cv2.warpAffine(IMAGES[0], matrix, (128, 128), flags=cv2.INTER_CUBIC), np.uint8)
    base = identity.embed(IMAGES[:1], POINTS[None])[0]
    assert float(identity.embed(big[None], (POINTS[None] + 0.5) * 8 - 0.5)[0] @ base) > 0.98
    moved = np.concatenate([POINTS, np.ones((5, 1))], axis=1) @ matrix.T
    assert float(identity.embed(turned[None], moved[None])[0] @ base) > SAME_PERSON_COSINE


def test_empty_batch_digest_and_travel(identity: Identity) -> None:
    assert identity.embed(np.zeros((0, 64, 64, 3), np.uint8), np.zeros((0, 5, 2))).shape == (0, 128)
    assert identity.digest == "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"
    copy = pickle.loads(pickle.dumps(identity))
    assert np.array_equal(copy.embed(IMAGES[:1], POINTS[None]), identity.embed(IMAGES[:1], POINTS[None]))


def test_what_does_not_fit_is_refused(identity: Identity) -> None:
    for images, points in (
        (IMAGES, ALL_POINTS[:2]),
        (IMAGES[0], ALL_POINTS),
        (IMAGES.astype(np.float32), ALL_POINTS),
        (IMAGES[:1], np.zeros((1, 5, 2))),
        (IMAGES[:1], np.full((1, 5, 2), np.nan)),
    ):
        with pytest.raises(ContractError):
            identity.embed(images, points)
    assert identity.embed(IMAGES[:1, :1, :1], POINTS[None] * 50).shape == (1, 128)  # a 1 px picture ends, too
    with pytest.raises(ContractError, match="cannot be read"):
        Identity("no/such.onnx").embed(IMAGES[:1], POINTS[None])
