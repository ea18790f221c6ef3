"""What nobody should hand over: editors, requests and trainings say which row or field is wrong."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.code_readers import ReaderConfig, Readers, advance_readers, reader_optimizer
from sdflow_core.method.edit_map import EditMap, EditMapConfig
from sdflow_core.method.editing import FlowEditor, LinearEditor, load_editor
from sdflow_core.method.editor import EditorBase
from sdflow_core.method.map_editor import MapEditor
from sdflow_core.method.map_training import MapTraining
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.method.request import Variant
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.training import EarlyStopping, TrainingConfig, train_editor
from sdflow_core.records.errors import ContractError

ROWS, DIM, NAMES = 3, 4, ("a", "b")
FLOW = PrincipalConfig(directions=8, width=16, blocks=1, matrices=2)
MAP = EditMapConfig(width=16, blocks=1, batch=16, readers=ReaderConfig(width=16, batch=16))


def labeller(names: tuple[str, ...] = NAMES) -> Labeller:
    torch.manual_seed(0)
    return Labeller(LabellerConfig(attributes=names, resolution=16, channels=(4, 4))).eval()


def editor(kind: str) -> EditorBase:
    torch.manual_seed(0)
    semantic, flow = SemanticEncoder(labeller()), PrincipalFlow(ROWS, DIM, 2, FLOW)
    if kind == "map":
        return MapEditor(flow, EditMap(8, 2, MAP), semantic, "encoder")
    if kind == "flow":
        return FlowEditor(flow, semantic, "encoder")
    return LinearEditor(torch.randn(2, ROWS, DIM), semantic, "encoder")


def people(count: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(count, ROWS, DIM, generator=rng)
    scores = torch.tensor([[0.1, 0.9], [0.9, 0.1]]).repeat(count, 1)[:count]
    return codes, scores


def train(codes: Tensor, scores: Tensor, checkpoint: Any = None, names: Any = NAMES, **given: Any) -> Any:
    config = TrainingConfig(**({"flow": FLOW, "edit_map": MAP, "steps": 2, "early_stopping": None} | given))
    return train_editor(codes, None, scores, nn.Linear(1, 1), labeller(names), config, checkpoint)


@pytest.mark.parametrize("kind", ["map", "flow", "linear"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("code", "latents to edit.*row 2"),
        ("s not a number", "attributes before the edit.*row 1, attribute b"),
        ("s outside", "attributes before the edit.*1.7.*row 1, attribute b"),
        ("target", "edit targets.*row 1"),
        ("strength", "edit strength.*row 3"),
    ],
)
def test_an_editor_names_the_row(kind: str, what: str, said: str) -> None:
    codes, s = people(4)
    codes, s, strength = codes.clone(), s.clone(), torch.ones(4)
    wanted = 1.0 - s
    if what == "code":
        codes[2, 0, 0] = math.inf
    elif what == "target":
        wanted[1, 1] = math.nan
    elif what == "strength":
        strength[3] = math.nan
    else:
        s[1, 1] = 1.7 if what == "s outside" else math.nan
    with pytest.raises(ContractError, match=said):
        editor(kind).edit(codes, None, s, wanted, strength)


@pytest.mark.parametrize(("kind", "name"), [("map", "map.last.weight"), ("linear", "directions")])
def test_weights_that_are_not_finite_are_no_editor(kind: str, name: str) -> None:
    tensors, metadata = _opened(editor(kind).to_bytes())
    tensors[name] = tensors[name] * math.nan
    with pytest.raises(ContractError, match="not finite"):
        load_editor(save(tensors, metadata=metadata))


def test_a_map_of_an_earlier_version_still_edits_as_it_did() -> None:
    made = editor("map")
    tensors, metadata = _opened(made.to_bytes())
    document = json.loads(metadata["sdflow"])
    document["config"]["map"]["readers"]["embedding"] = 128  # an option until the witness said it
    codes, s = people(2)
    again = load_editor(save(tensors, metadata={"sdflow": json.dumps(document)}))
    assert torch.equal(again.edit(codes, None, s, 1 - s).w_plus, made.edit(codes, None, s, 1 - s).w_plus)
    document["config"]["map"]["readers"]["embeding"] = 128
    with pytest.raises(ContractError, match="embeding"):
        load_editor(save(tensors, metadata={"sdflow": json.dumps(document)}))


@pytest.mark.parametrize("shape", [(2,), (2, 9, 9)])
def test_directions_of_another_shape(shape: tuple[int, ...]) -> None:
    tensors, metadata = _opened(editor("linear").to_bytes())
    tensors["directions"] = torch.zeros(shape)
    with pytest.raises(ContractError, match="directions are"):
        load_editor(save(tensors, metadata=metadata))


def _opened(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = int.from_bytes(data[:8], "little")
    return load(data), json.loads(data[8 : 8 + size])["__metadata__"]


@pytest.mark.parametrize(
    ("asked", "kept"), [("+0.00001", "+0.00001"), ("-0.0001", "-0.0001"), ("+0.1234567", "+0.123457")]
)
def test_a_small_change_stays_a_change(asked: str, kept: str) -> None:
    once = Variant(targets={"a": asked})
    assert once.targets == {"a": kept}
    assert Variant.model_validate_json(once.model_dump_json()) == once


def test_a_change_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a: expected"):
        Variant(targets={"a": "+0.0000001"})
    assert Variant(targets={"a": -0.0}).text() == '{"a":0.0}'


@pytest.mark.parametrize("batch", [None, 2])
def test_nothing_left_beside_what_is_held_out(batch: int | None) -> None:
    with pytest.raises(ContractError, match="beside 2 that early stopping holds out.*Found: 0"):
        train(*people(2), early_stopping=EarlyStopping(), batch=batch)


def test_a_checkpoint_of_other_attributes() -> None:
    class Slot:
        data: bytes | None = None

        def save(self, data: bytes) -> None:
            self.data = data

        def load(self) -> bytes | None:
            return self.data

    slot = Slot()
    train(*people(20), slot)
    with pytest.raises(ContractError, match="checkpoint of another training"):
        train(*people(20), slot, names=("a", "other"))


def test_a_gradient_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scores = people(20)
    training = MapTraining(PrincipalFlow(ROWS, DIM, 2, FLOW), codes, scores, None, MAP, 3, 0)
    while training.place()[0] != "map":
        training.advance()
    # the loss is 0, its slope is not a number
    monkeypatch.setattr(
        "sdflow_core.method.map_training.map_terms",
        lambda map_, *_: {"aim": (map_.last.weight.sum() * 0.0).sqrt()},
    )
    before = io.BytesIO()
    torch.save(training.map.state_dict(), before)
    with pytest.raises(ContractError, match="diverged.*map_gradient"):
        training.advance()
    after = io.BytesIO()
    torch.save(training.map.state_dict(), after)
    assert before.getvalue() == after.getvalue()


def test_readers_do_not_learn_from_a_gradient_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = Readers(2, 4, 2, 8)
    monkeypatch.setattr(
        "sdflow_core.method.code_readers.attribute_loss", lambda read, _: (read.sum() * 0.0).sqrt()
    )
    x, wanted, config = torch.randn(4, 4), torch.rand(4, 2), ReaderConfig()
    rng, optimizer = torch.Generator().manual_seed(0), reader_optimizer(readers, config)
    loss = advance_readers(readers, optimizer, x, wanted, "attributes", config, rng, 1.0)
    assert not math.isfinite(loss)
    assert all(bool(torch.isfinite(p).all()) for p in readers.parameters())
