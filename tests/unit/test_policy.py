"""Policies: what is outside the limits is refused before anything runs, with field, reason and bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sdflow_core.method.request import EditConfig
from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.policy import EditGates, NightlyPolicy, load_policy

GOOD: dict[str, Any] = {
    "dataset": "team",
    "source": "photos",
    "consent": "consent.csv",
    "requests": [{"smiling": 0.8}],
    "allowed": {"smiling": {"low": 0.1, "high": 0.9}, "young": {}},
}


def policy(**changes: Any) -> NightlyPolicy:
    return NightlyPolicy.model_validate({"datasets": [{**GOOD, **changes}]})


def test_a_good_policy_and_its_digest() -> None:
    assert policy().datasets[0].allowed["young"].high == 1.0
    assert policy().digest == policy(enabled=True).digest != policy(enabled=False).digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"requests": [{"smiling": 0.95}]}, ["dataset team", "smiling=0.95", "high is 0.9"]),
        ({"requests": [{"smiling": 0.05}]}, ["dataset team", "smiling=0.05", "low is 0.1"]),
        ({"requests": [{"smiling": 0.8}, {"male": 1.0}]}, ["dataset team", "male=1.0", "not allowed"]),
        ({"requests": [{"smiling": "flip"}]}, ["smiling=flip", "0.97", "0.03", "high is 0.9", "low is 0.1"]),
        ({"requests": [{"smiling": 0.8}], "allowed": {}}, ["smiling=0.8", "only nothing is"]),
        ({"requests": [{"smiling": 1.2}]}, ["datasets.0.requests.0.smiling", "[0, 1], or flip"]),
        ({"requests": [{"smiling": float("nan")}]}, ["datasets.0.requests.0.smiling", "[0, 1], or flip"]),
        ({"requests": [{"smiling": True}]}, ["datasets.0.requests.0.smiling", "[0, 1], or flip"]),
        ({"requests": [{"smiling": "+0.3"}]}, ["smiling=+0.3", "asks for 1", "high is 0.9"]),
        ({"requests": [{"smiling": "-0.2"}]}, ["smiling=-0.2", "asks for 0", "low is 0.1"]),
        ({"requests": [{"young": "+1.3"}]}, ["datasets.0.requests.0.young", "a change such as"]),
        ({"requests": [{"young": "+0"}]}, ["datasets.0.requests.0.young", "a change such as"]),
        ({"requests": [{}]}, ["datasets.0.requests", "at least one"]),
        ({"requests": []}, ["datasets.0.requests", "at least one"]),
        ({"requests": [{"smiling": 0.8}, {"smiling": 0.8}]}, ["datasets.0.requests", "twice"]),
        ({"allowed": {"smiling": {"low": 0.9, "high": 0.5}}}, ["datasets.0.allowed.smiling", "above high"]),
        ({"allowed": {"smiling": {"high": 1.5}}}, ["datasets.0.allowed.smiling.high", "equal to 1"]),
        ({"gates": {"min_identity": 3}}, ["datasets.0.gates.min_identity", "equal to 1"]),
        ({"gates": {"min_idenity": 0.3}}, ["datasets.0.gates.min_idenity", "not permitted"]),
        ({"dataset": "../x"}, ["datasets.0.dataset", "a name such as"]),
        ({"source": ""}, ["datasets.0.source", "at least 1"]),
    ],
)
def test_field_reason_and_bound_are_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        policy(**changes)
    text = str(caught.value)
    assert caught.value.error_count() == 1 and all(word in text for word in words), text


def test_a_flip_asks_for_what_its_own_aim_is() -> None:
    limits = {"smiling": {"low": 0.3, "high": 0.7}}
    asked = policy(requests=[{"smiling": "flip"}], allowed=limits, gates={"flip_to": 0.7})
    assert asked.datasets[0].gates.overrides() == {"flip_to": 0.7}


def test_a_change_is_allowed_where_all_that_it_may_end_at_is() -> None:
    up = policy(requests=[{"smiling": "+0.30"}], allowed={"smiling": {"low": 0.3}})
    down = policy(requests=[{"smiling": "-0.2"}], allowed={"smiling": {"high": 0.8}})
    assert up.datasets[0].requests == ({"smiling": "+0.3"},)
    assert down.datasets[0].requests == ({"smiling": "-0.2"},)


def test_each_dataset_once_and_at_least_one() -> None:
    with pytest.raises(ValidationError, match="found twice: team"):
        NightlyPolicy.model_validate({"datasets": [GOOD, GOOD]})
    with pytest.raises(ValidationError, match="at least one"):
        NightlyPolicy.model_validate({"datasets": []})


def test_gates_are_settings_of_edits_with_the_same_bounds() -> None:
    known = EditConfig.model_fields
    for name, field in EditGates.model_fields.items():
        assert name in known
        bounds = [item for item in field.metadata if hasattr(item, "ge") or hasattr(item, "gt")]
        assert not bounds or bounds == [
            i for i in known[name].metadata if hasattr(i, "ge") or hasattr(i, "gt")
        ]
    assert EditConfig.model_validate(EditGates().overrides()) == EditConfig()


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        "[[datasets]]\ndataset = 'a'\nsource = 'photos'\nconsent = '/lists/a.csv'\n"
        "requests = [{ smiling = 0.5 }]\nallowed = { smiling = {} }\n"
        "[[datasets]]\ndataset = 'b'\nsource = 's3://raw/b'\nconsent = 'store:b.csv'\n"
        "requests = [{ smiling = 'flip' }]\nallowed = { smiling = {} }\n"
    )
    one, two = load_policy(file).datasets
    assert (one.source, one.consent) == (str(tmp_path / "photos"), "/lists/a.csv")
    assert (two.source, two.consent) == ("s3://raw/b", "store:b.csv")


def test_a_file_that_is_no_policy(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    with pytest.raises(NotFoundError, match="no such policy"):
        load_policy(file)
    file.write_text("[[datasets]\n")
    with pytest.raises(ContractError, match="no TOML"):
        load_policy(file)
    file.write_text(
        "[[datasets]]\ndataset = 'a'\nsource = 'p'\nconsent = 'c'\nallowed = {}\nrequests = [{ x = 7 }]"
    )
    with pytest.raises(ContractError, match=r"datasets\.0\.requests\.0\.x.*found 7.*policy\.toml"):
        load_policy(file)
