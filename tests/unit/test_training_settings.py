"""The published setting by name: the same values as in full, single ones replaced, all in the recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

import cli.main as command
from cli import stories
from sdflow_core.method.training_config import TrainingConfig, paper_training
from sdflow_core.method.training_set import EditorTraining
from sdflow_core.records.config import as_recipe
from sdflow_core.records.refreshes import RefreshPolicy
from tasks.train import training_config


def test_the_name_stands_for_the_published_values() -> None:
    paper = training_config({"config": "paper"})
    assert paper.training == paper_training()
    assert as_recipe(paper) == as_recipe(EditorTraining(training=paper_training()))
    assert "config" not in as_recipe(paper) and as_recipe(paper)["training"]["flow"]["kind"] == "paper"
    assert training_config({"config": "default"}) == training_config(None) == EditorTraining()
    assert as_recipe(paper) != as_recipe(EditorTraining())


def test_single_values_are_replaced_and_the_rest_stays_published() -> None:
    changes = {"steps": 9, "objective": {"consistency": 0.0}, "density_solver": {"rtol": 1e-3}}
    found = training_config({"config": "paper", "training": changes, "prior_samples": 4})
    want = paper_training(9)
    assert found.prior_samples == 4 and found.training.steps == 9
    assert found.training.objective == want.objective.model_copy(update={"consistency": 0.0})
    assert found.training.density_solver == want.density_solver.model_copy(update={"rtol": 1e-3})
    same = {"objective", "density_solver"}
    assert found.training.model_dump(exclude=same) == want.model_dump(exclude=same)
    given = training_config({"config": "paper", "training": TrainingConfig(seed=5)})
    assert given.training == paper_training().model_copy(update={"seed": 5})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"config": "nature"}, "one of default, paper"),
        ({"config": "paper", "training": 3}, "names and values"),
        ({"config": "paper", "training": {"s_noise": 0.1}}, "s_noise"),
        ({"config": "paper", "training": {"edit_map": {}}}, "edit_map"),
        ({"config": "paper", "training": {"stops": 1}}, "stops"),
    ],
)
def test_what_the_published_training_does_not_know_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        training_config(values)


def test_a_refresh_policy_may_name_it() -> None:
    policy = RefreshPolicy.model_validate({"training": {"config": "paper", "training": {"steps": 3}}})
    assert training_config(policy.training).training == paper_training(3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command hands to the story, which is not run."""
    seen: list[dict[str, Any]] = []

    def run(now: Any, flow: Callable[[], Any], title: str, check: Any) -> Any:
        return flow()

    def story(**given: Any) -> dict[str, Any]:
        seen.append(given["config"])
        return {"editor": "e"}

    monkeypatch.setattr(stories, "run_flow", run)
    monkeypatch.setitem(sys.modules, "flows.train", SimpleNamespace(train=story))  # type: ignore[arg-type]
    return seen


def test_the_command_takes_the_name(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for words, config in [
        ([], {}),
        (["--config", "default"], {}),
        (["--config", "paper"], {"config": "paper"}),
        (
            ["--config", "paper", "--steps", "7", "--seed", "2"],
            {"config": "paper", "training": {"steps": 7, "seed": 2}},
        ),
    ]:
        assert command.app(["train", "people", *words]) == 0
        assert asked.pop() == config
    assert command.app(["train", "people", "--config", "nature"]) == 2
    assert "default or paper" in capsys.readouterr().err and not asked
    assert command.app(["train", "--help"]) == 0
    assert "published" in capsys.readouterr().out
