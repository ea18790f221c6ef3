"""The one decorator of all steps: a Prefect task around a core function, with retries, lineage, our run id.

Reuse is not decided here and not by Prefect's cache: a step computes the row keys that its table does not
hold, which also notices an output that was deleted. What reuse looks like in the records is a REUSED event.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdflow_core.records.config import Config, DatasetRef
from sdflow_core.records.errors import SDFlowError, TransientError
from sdflow_core.records.lineage import Lineage, save_recipe
from sdflow_core.records.reconcile import close_run, open_run
from sdflow_core.records.store import Store
from tasks.fan_out import Threads, in_order
from tasks.limits import device_slot
from tasks.recipes import Recipe
from tasks.runtime import place, settings, store_at

P = ParamSpec("P")
R = TypeVar("R")

_DELAYS: list[float] = [1, 5]  # seconds before the first and the second retry


class Job(Config):
    """What every step of a story is told: references only, under 1 kB.

    Attributes:
        store: Address of the store.
        dataset: Name of the dataset.
        bundle: Digest of the pinned bundle; empty where no model is used.
        parent: Run id of the story.
        root: Run id of the outermost story, which holds the lease; empty: the story's own.
    """

    store: str
    dataset: str
    bundle: str = ""
    parent: str
    root: str = ""


@dataclass(frozen=True)
class StepRun:
    """One execution of a step, handed to its core function."""

    job: Job
    run: str
    name: str
    facts: dict[str, Any] = field(
        default_factory=dict[str, Any], compare=False
    )  # what COMPLETE will say beside its outputs

    @property
    def store(self) -> Store:
        """The opened store."""
        return store_at(self.job.store)

    def using(self, recipe: Recipe) -> str:
        """Declare the recipe of this run; its document is kept for auditors and COMPLETE will name it."""
        save_recipe(self.store, recipe.document)
        self.facts.update(recipe=recipe.key, config=recipe.document["config"])
        return recipe.key

    def reused(self, output: DatasetRef) -> None:
        """Record that everything was there already."""
        _emit(self, "REUSED", outputs=[output.model_dump(mode="json")], **self.facts)


def _emit(run: StepRun, event: Any, **facts: Any) -> None:
    Lineage(run.store).emit(
        event,
        run=run.run,
        job=run.name,
        parent=run.job.parent,
        inputs=facts.get("inputs", []),
        outputs=facts.get("outputs", []),
        recipe=facts.get("recipe"),
        bundle=run.job.bundle or None,
        config=facts.get("config"),
        error=facts.get("error"),
        place=place(),
        figures=facts.get("figures"),
    )


def _worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False


def step(
    name: str, *, retries: int = 2
) -> Callable[[Callable[Concatenate[StepRun, P], R]], Callable[Concatenate[Job, P], R]]:
    """Turn `core(run: StepRun, ...)` into a Prefect task `step(job: Job, ...)`.

    Args:
        name: Name of the step in recipes, lineage and the Prefect UI.
        retries: Attempts after a `TransientError`; all other errors end the step at once.

    Returns:
        A task whose result is the core function's; results are not persisted, the records decide what is
        done.
    """

    def decorate(core: Callable[Concatenate[StepRun, P], R]) -> Callable[Concatenate[Job, P], R]:
        @wraps(core)
        def body(job: Job, *args: P.args, **kwargs: P.kwargs) -> R:
            run = StepRun(job, uuid.uuid4().hex, name)
            given = [a.model_dump(mode="json") for a in (*args, *kwargs.values()) if isinstance(a, Config)]
            root = job.root or job.parent
            open_run(run.store, run.run, job=name, dataset=job.dataset, parent=job.parent, root=root)
            _emit(run, "START", inputs=given)
            try:
                result = core(run, *args, **kwargs)
            except KeyboardInterrupt:
                # a person's Ctrl-C, or a cluster told to stop what is left of a failed batch
                _emit(run, "ABORT", inputs=given, **run.facts)
                close_run(run.store, run.run)
                raise
            except Exception as error:
                # An event that cannot be written must not hide why: it decides whether this is tried again.
                with suppress(SDFlowError):
                    _emit(run, "FAIL", inputs=given, **run.facts, error=f"{type(error).__name__}: {error}")
                    close_run(run.store, run.run)
                raise
            outputs = [result.model_dump(mode="json")] if isinstance(result, DatasetRef) else []
            _emit(run, "COMPLETE", inputs=given, outputs=outputs, **run.facts)
            close_run(run.store, run.run)
            return result

        # the copied signature would make Prefect look for parameters that `body` does not have
        del body.__wrapped__
        body.__annotations__ = {}
        return task(
            name=name,
            retries=retries,
            retry_delay_seconds=_DELAYS[:retries] or None,
            retry_condition_fn=_worth_retrying,
            persist_result=False,
            cache_policy=NO_CACHE,
            log_prints=False,
        )(body)

    return decorate


@task(name="shard", persist_result=False, cache_policy=NO_CACHE, log_prints=False)
def on_a_node(order: Any, *rest: Any) -> Any:
    """A shard of any step, on a node of a cluster: only its order travels, the code lies there already."""
    # imported here, since a cluster carries this function's text to its workers
    from tasks.away import obey

    return obey(order, *rest)


def each_shard(run_step: Any, job: Job, shards: Sequence[Any], *rest: Any) -> list[Any]:
    """Run a step for every shard, in threads or on a cluster as `SDFLOW_RUNNER` says.

    In threads as many run at a time as `SDFLOW_WORKERS` says, and the device's limit, if one is configured,
    is held for the whole batch. A cluster counts its devices itself. At the first shard that fails no further
    one is begun, and the story fails.

    Returns:
        What the step gave for each shard, in the order of the shards.
    """
    if not shards:
        return []
    now = settings()
    if now.runner == "ray":
        from tasks.cluster import ray_batch

        with ray_batch(run_step, job, shards, rest) as batch:
            return in_order(batch, shards)
    with device_slot():
        if now.workers == 1:
            return [run_step(job, shard, *rest) for shard in shards]
        return in_order(Threads(run_step, job, rest, now.workers), shards)
