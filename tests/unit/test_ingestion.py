"""Verdicts about single sources: every kind of bad file is a row with a reason in words."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sdflow_core.faces.detect import Face
from sdflow_core.faces.ingestion import IngestConfig, judge_source
from sdflow_core.records.errors import ContractError, NotFoundError, TransientError
from sdflow_core.records.sources import UnfitError

CONFIG = IngestConfig(template_scale=0.7, resolution=64)


def face(distance: float = 40.0) -> Face:
    points = np.array(
        [[60, 60], [60 + distance, 60], [60 + distance / 2, 85], [65, 105], [55 + distance, 105]], float
    )
    return Face(np.array([40.0, 40, 80, 90]), points, 0.9)


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def raising(error: Exception) -> Callable[[], bytes]:
    def read() -> bytes:
        raise error

    return read


def test_one_face_is_kept() -> None:
    verdict = judge_source(picture, lambda _: [face()], CONFIG)
    assert (verdict.status, verdict.reason) == ("kept", "")
    assert verdict.face is not None and verdict.face.crop.shape == (64, 64, 3)
    assert len(verdict.image_id) == 64


@pytest.mark.parametrize(
    ("found", "reason"),
    [([], "no face found"), ([face(), face()], "2 faces found"), ([face(5.0)], "face too small")],
)
def test_other_counts_of_faces_are_dropped(found: list[Face], reason: str) -> None:
    verdict = judge_source(picture, lambda _: found, CONFIG)
    assert verdict.status == "dropped" and reason in verdict.reason and verdict.face is None


@pytest.mark.parametrize(
    "error", [NotFoundError("gone"), TransientError("busy"), ContractError("no permission to read the file")]
)
def test_what_could_not_be_read_is_tried_again(error: Exception) -> None:
    verdict = judge_source(raising(error), lambda _: [face()], CONFIG)
    assert verdict.status == "failed" and verdict.reason


def test_what_can_never_be_read_is_dropped() -> None:
    verdict = judge_source(raising(UnfitError("a pipe, not a file")), lambda _: [face()], CONFIG)
    assert (verdict.status, verdict.reason, verdict.image_id) == ("dropped", "a pipe, not a file", "")


def test_what_is_refused_is_hashed_and_never_decoded() -> None:
    def find(_: object) -> list[Face]:
        raise AssertionError("nobody allowed to look")

    verdict = judge_source(picture, find, CONFIG, "no consent for this source")
    assert (verdict.status, verdict.reason) == ("dropped", "no consent for this source")
    assert verdict.image_id == judge_source(picture, lambda _: [], CONFIG).image_id


def test_a_face_over_the_border_or_turned_is_dropped() -> None:
    over = replace(face(), points=face().points - [61, 0])
    verdict = judge_source(picture, lambda _: [over], CONFIG)
    assert verdict.status == "dropped" and "cut off" in verdict.reason
    verdict = judge_source(picture, lambda _: [replace(face(), turned=True)], CONFIG)
    assert verdict.status == "dropped" and "turn the picture" in verdict.reason


def test_bytes_that_are_no_picture_are_dropped() -> None:
    verdict = judge_source(lambda: b"plain text", lambda _: [face()], CONFIG)
    assert verdict.status == "dropped" and "picture" in verdict.reason
