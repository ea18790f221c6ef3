"""The edit map: nothing asked changes nothing, terms say what they say, killed and resumed is the same."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.method.code_readers import ReaderConfig, Readers, attribute_loss, identity_loss
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import attributes_of, features
from sdflow_core.method.edit_map import EditMap, EditMapConfig, map_terms, wanted_features
from sdflow_core.method.map_training import STAGES, MapTraining
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.records.errors import ContractError

ROWS, DIM, ATTRIBUTES, PEOPLE = 3, 4, 2, 300
SMALL = EditMapConfig(
    width=16,
    blocks=1,
    steps=5,
    batch=16,
    identity_rows=40,
    looked_at=20,
    readers=ReaderConfig(width=16, steps=4, batch=16),
)


def people(n: int = PEOPLE, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, ATTRIBUTES, generator=rng).clamp(-1.9, 1.9)
    slopes = torch.randn(ATTRIBUTES, ROWS * DIM, generator=torch.Generator().manual_seed(8))
    flat = torch.randn(n, ROWS * DIM, generator=rng) + phi @ slopes
    return flat.unflatten(1, (ROWS, DIM)), attributes_of(phi)


@pytest.fixture(scope="module")
def flow() -> PrincipalFlow:
    torch.manual_seed(0)
    made = PrincipalFlow(ROWS, DIM, ATTRIBUTES, PrincipalConfig(directions=8, width=16, blocks=1, matrices=2))
    made.fit(survey(TensorSource(*people())))
    return made.eval().requires_grad_(False)


class Glance:
    """A witness of pictures that are their codes: it knows what it saw and how often it was asked."""

    def __init__(self, *, knows_people: bool = True, further: int = 0) -> None:
        self.knows_people, self.described, self.looked = knows_people, list[int](), 0
        self.further, self.scored, self.dimensions = further, list[int](), 6
        self.eyes = torch.randn(ROWS * DIM, 6, generator=torch.Generator().manual_seed(4))

    def person(self, w_plus: Tensor) -> Tensor:
        return torch.nn.functional.normalize(w_plus.flatten(1) @ self.eyes, dim=1)

    def describe(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        assert torch.equal(w_plus, people()[0][rows])
        self.described += rows.tolist()
        return self.person(w_plus)

    def beside(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        assert torch.equal(w_plus, people()[0][rows])
        self.scored += rows.tolist()
        return torch.sigmoid(w_plus.flatten(1)[:, ATTRIBUTES : ATTRIBUTES + self.further])

    def look(self, w_plus: Tensor) -> tuple[Tensor, Tensor | None]:
        self.looked += len(w_plus)
        scores = torch.sigmoid(w_plus.flatten(1)[:, : ATTRIBUTES + self.further])
        return scores, self.person(w_plus) if self.knows_people else None


def training(
    flow: PrincipalFlow, config: EditMapConfig = SMALL, witness: Glance | None = None
) -> MapTraining:
    return MapTraining(flow, *people(), witness, config, flow_steps=6, seed=0)


def test_asking_for_what_is_there_changes_nothing_at_all(flow: PrincipalFlow) -> None:
    torch.manual_seed(1)
    edit_map = EditMap(8, ATTRIBUTES, SMALL)
    w, s = people(20, seed=2)
    phi = features(s)
    with torch.no_grad():
        assert torch.equal(edit_map(flow, w, phi, phi), w)
        assert (edit_map(flow, w, phi, phi + 1) - w).abs().amax((1, 2)).min() > 0.01


def test_an_untrained_network_leaves_the_regression(flow: PrincipalFlow) -> None:
    edit_map = EditMap(8, ATTRIBUTES, SMALL)
    with torch.no_grad():
        edit_map.last.weight.zero_()
        w, s = people(5, seed=2)
        phi = features(s)
        after = phi + torch.tensor([1.0, 0.0])
        moved = edit_map(flow, w, phi, after) - w
    assert torch.allclose(moved.flatten(1), flow.slopes[1].expand(5, -1), atol=1e-5)


def test_readers_learn_what_codes_say(flow: PrincipalFlow) -> None:
    config = EditMapConfig(readers=ReaderConfig(width=32, steps=200, batch=64), width=8, blocks=1, steps=1)
    teaching = training(flow, config)
    w, s = people(200, seed=5)
    x = flow.along(w) / teaching.map.scale
    with torch.no_grad():
        before = float(attribute_loss(teaching.attributes(x), s))
    for _ in range(200):
        teaching.advance()
    with torch.no_grad():
        after = float(attribute_loss(teaching.attributes(x), s))
    assert after < 0.5 * before


def test_terms_are_zero_where_nothing_is_asked_and_count_only_their_own_attributes(
    flow: PrincipalFlow,
) -> None:
    torch.manual_seed(2)
    edit_map, readers = EditMap(8, ATTRIBUTES, SMALL), Readers(3, 8, ATTRIBUTES, 16, linear=1)
    people_of = Readers(2, 8, 6, 16)
    w, s = people(20, seed=2)
    a, phi = flow.along(w), features(s)
    with torch.no_grad():
        none = map_terms(edit_map, flow, readers, people_of, a, phi, phi, torch.zeros_like(phi))
    assert none["aim"] == 0 and none["hold"] == 0 and none["kept"] == 0
    assert abs(float(none["identity"])) < 1e-6
    only_first = torch.tensor([[1.0, 0.0]]).expand_as(phi)
    with torch.no_grad():
        some = map_terms(edit_map, flow, readers, None, a, phi, phi + only_first, only_first)
    assert "identity" not in some
    assert some["aim"] > 0 and some["hold"] > 0


def test_no_term_is_computed_at_weight_zero(flow: PrincipalFlow) -> None:
    off = SMALL.model_copy(update={"aim": 0.0, "hold": 0.0, "identity": 0.0, "kept": 0.0})
    edit_map, readers = EditMap(8, ATTRIBUTES, off), Readers(2, 8, ATTRIBUTES, 16)
    w, s = people(4)
    phi = features(s)
    assert map_terms(edit_map, flow, readers, readers, flow.along(w), phi, phi, torch.zeros_like(phi)) == {}


def test_what_is_asked_for_is_drawn_within_reach(flow: PrincipalFlow) -> None:
    phi = torch.zeros(4000, 3)
    wanted, changed = wanted_features(phi, SMALL, torch.Generator().manual_seed(0))
    assert wanted.abs().max() <= SMALL.reach
    assert (wanted[changed == 0] == 0).all()
    assert (changed.sum(1) >= 1).all()
    several = (changed.sum(1) > 1).float().mean()
    assert 0.1 < several < SMALL.several


def test_killed_and_resumed_equals_uninterrupted_in_every_stage(flow: PrincipalFlow) -> None:
    whole = training(flow, witness=Glance())
    whole.run(lambda losses: None)
    names = {name for losses in whole.history for name in losses}
    assert {"reader_attributes", "reader_identity", "map_kept", "looked_aim", "looked_identity"} <= names
    ends = torch.tensor([whole.lengths[stage] for stage in STAGES]).cumsum(0).tolist()
    for killed_after in [1, *[end + 1 for end in ends[:-1]]]:
        first = training(flow, witness=Glance())
        for _ in range(killed_after):
            first.advance()
        saved = copy.deepcopy(first.state())
        second = training(flow, witness=Glance())
        second.restore(saved)
        torch.manual_seed(999)
        made = second.run(lambda losses: None)
        assert second.history == whole.history
        for name, value in made.state_dict().items():
            assert torch.equal(value, whole.map.state_dict()[name]), name


def test_stages_follow_each_other_and_pictures_are_looked_at_once(flow: PrincipalFlow) -> None:
    witness = Glance()
    teaching = training(flow, witness=witness)
    assert teaching.total == sum(MapTraining.plan(SMALL, PEOPLE, 6, witness).values())
    seen: list[str] = []
    while teaching.step < teaching.total:
        seen.append(teaching.place()[0])
        teaching.advance()
    assert list(dict.fromkeys(seen)) == list(STAGES)
    assert witness.described == list(range(40)) and witness.looked == 20
    assert len(teaching.along) == PEOPLE + 20 and teaching.embeddings is not None
    assert len(teaching.embeddings) == 60


def test_without_a_witness_the_map_learns_from_codes_and_scores_alone(flow: PrincipalFlow) -> None:
    alone = training(flow)
    assert alone.total == 4 + 5  # readers of attributes, the map
    alone.run(lambda losses: None)
    assert not any("map_identity" in losses for losses in alone.history)


def test_a_witness_that_knows_no_people_is_only_asked_what_pictures_show(flow: PrincipalFlow) -> None:
    witness = Glance(knows_people=False)
    teaching = training(flow, witness=witness)
    teaching.run(lambda losses: None)
    assert not witness.described and witness.looked == 20
    assert teaching.embeddings is None and teaching.lengths["identity again"] == 0


def test_what_was_looked_at_is_what_the_readers_learn_from(flow: PrincipalFlow) -> None:
    teaching = training(flow, witness=Glance(knows_people=False))
    while teaching.place()[0] != "attributes again":
        teaching.advance()
    rows, wanted = teaching._rows("attributes", 16)
    assert torch.equal(rows, wanted)
    assert (rows[:8] >= PEOPLE).all() and (rows[8:] < PEOPLE).all()


@pytest.mark.parametrize(("steps", "expected"), [(4, (16, 12)), (100, (100, 75)), (9999, (2048, 1536))])
def test_a_short_training_looks_at_few_pictures(steps: int, expected: tuple[int, int]) -> None:
    assert EditMapConfig().pictures_of(steps) == expected


def test_a_loss_that_is_not_finite_stops_the_training(flow: PrincipalFlow) -> None:
    broken = training(flow, EditMapConfig(readers=ReaderConfig(width=8, steps=1), steps=3, width=8, blocks=1))
    broken.advance()
    with torch.no_grad():
        broken.map.last.bias.fill_(math.nan)
        broken.map.first.bias.fill_(math.nan)
    with pytest.raises(ContractError, match="diverged"):
        broken.advance()


def test_identity_loss_is_the_angle() -> None:
    unit = torch.tensor([[1.0, 0.0]])
    read: Any = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])
    assert abs(float(identity_loss(read, unit)) - 0.5) < 1e-6


def test_attributes_that_are_not_edited_are_read_and_held(flow: PrincipalFlow) -> None:
    """What two further attributes cost, in the same readers, with and without the term that holds them."""
    witness = Glance(further=2)
    readers = ReaderConfig(width=32, steps=200, batch=64)
    shared: dict[str, Any] = {"readers": readers, "width": 32, "blocks": 1, "steps": 300, "identity": 0.0}
    shared |= {"looked_at": 64, "identity_rows": 64}
    moved: dict[float, float] = {}
    for weight in (0.0, 10.0):
        teaching = training(flow, EditMapConfig(beside=weight, **shared), witness)
        edit_map = teaching.run(lambda losses: None)
        assert teaching.attributes.third.shape[-1] == ATTRIBUTES + (2 if weight else 0)
        w, s = people(200, seed=5)
        phi = features(s)
        with torch.no_grad():
            after = edit_map(flow, w, phi, phi + torch.tensor([1.0, 0.0]))
        beside = slice(ATTRIBUTES, ATTRIBUTES + 2)
        moved[weight] = float((after - w).flatten(1)[:, beside].abs().mean())
    assert sorted(witness.scored) == list(range(PEOPLE))
    assert moved[10.0] < 0.8 * moved[0.0]


def test_scores_that_nobody_knows_teach_nothing() -> None:
    read = torch.randn(3, 4, 2)
    scores = torch.full((4, 2), torch.nan)
    assert attribute_loss(read, scores) == 0
    scores[:, 0] = 0.3
    assert torch.allclose(attribute_loss(read, scores), attribute_loss(read[..., :1], scores[:, :1]))
