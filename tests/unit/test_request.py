"""What may be asked for: one spelling of each request, and a clear word about every other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sdflow_core.method.request import EditConfig, Variant, change_of, checked_target
from sdflow_core.records.errors import ContractError
from tasks.edit_plan import variants_of


def test_one_request_has_one_text() -> None:
    asked = [{"b": "+0.30", "a": 1}, {"a": 1.0, "b": "+.3"}, {"a": 1.0, "b": "+0.3"}]
    assert {variant.text() for variant in variants_of(asked)} == {'{"a":1.0,"b":"+0.3"}'}
    again = Variant.model_validate_json(Variant(targets={"a": "-0.25", "b": "flip"}).model_dump_json())
    assert again.targets == {"a": "-0.25", "b": "flip"}


def test_a_sign_makes_it_a_change() -> None:
    said: list[Any] = [checked_target(value) for value in (0.3, "+0.3", "-1", "flip")]
    assert [change_of(value) for value in said] == [None, 0.3, -1.0, None]
    assert Variant(targets={"a": "+0.3"}).targets["a"] == "+0.3", "a text stays one: 0.3 is another request"


@pytest.mark.parametrize(
    "value",
    [1.5, -0.2, float("nan"), float("inf"), True, None, "", "0.3", "+", "+1.2", "+0", "+nan", "+1e-3", "up"],
)
def test_everything_else_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ContractError, match=r"smiling.*expected a score in \[0, 1\], or flip, or a change"):
        variants_of([{"smiling": value}])
    with pytest.raises(ContractError, match="at least one attribute"):
        variants_of([{}])


def test_shares_of_the_way_must_fall() -> None:
    for retries in ((0.5, 0.75), (1.0,), (0.0,), (float("nan"),)):
        with pytest.raises(ValidationError):
            EditConfig(retries=retries)
    assert EditConfig(retries=()).retries == ()
