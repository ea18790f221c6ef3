"""What a worker process of a cluster does with a shard: checks that it is in the right place, runs the step.

An order says which step, of which version of the code, under which settings. Code, models and credentials are
the node's own; the store is the only thing that is shared.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError, SDFlowError
from sdflow_core.records.lineage import code_version
from sdflow_core.records.reconcile import marker_of
from tasks.runtime import CALLS, Settings, forget_models, running_at, settings, store_at
from tasks.step import Job

__all__ = ["Done", "Order", "obey", "order_for"]

# What only the story's own process needs to know. All else of `Settings` travels; other variables, among them
# every credential, do not: a node has its own.
_STAYS = frozenset({"store", "runner", "ray_address", "ray_tasks", "gpu_limit"})

_told: Counter[str] = Counter()  # of `CALLS`, what a story has heard of
_gpus: list[str] = []  # that this process computes on
_stories: set[str] = set()  # that were seen in their store


class Order(Config):
    """One shard's errand.

    Attributes:
        step: Where the step is defined, `module:name`.
        job: What the step is told.
        code: Version of the code that plans; another one computes other rows.
        settings: `SDFLOW_*` variables of the story.
    """

    step: str
    job: Job
    code: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Done:
    """What comes back.

    Attributes:
        result: Of the step.
        calls: Calls of the networks that this process made and no story was told of yet.
    """

    result: Any
    calls: dict[str, int]


def order_for(run_step: Any, job: Job) -> Order:
    """The order for the shards of one step, as of now."""
    names = (f"SDFLOW_{name}".upper() for name in Settings.model_fields if name not in _STAYS)
    return Order(
        step=f"{run_step.fn.__module__}:{run_step.fn.__qualname__}",
        job=job,
        code=code_version(),
        settings={name: os.environ[name] for name in names if name in os.environ},
    )


def obey(order: Order, *rest: Any) -> Done:
    """Run the step of an order in this process.

    Raises:
        ContractError: This node has another version of the code, or sees another store.
        SDFlowError: What the step raised; also in place of an error that cannot cross to another process.
    """
    if code_version() != order.code:
        raise ContractError(
            "a node of the cluster has another version of the code",
            expected=order.code,
            found=code_version(),
            todo="install the same version on all nodes and start the story again",
        )
    _follow(order.settings)
    gpus = _assigned_gpus()
    _settle_on(gpus)
    _same_store(order.job)
    module, _, name = order.step.partition(":")
    with running_at({"runner": "ray", "node": _node(), "gpus": gpus, "device": settings().device}):
        try:
            result = getattr(import_module(module), name).fn(order.job, *rest)
        except Exception as error:
            if _crosses(error):
                raise
            raise SDFlowError(f"{type(error).__name__}: {error}") from None
    calls = {what: n - _told[what] for what, n in CALLS.items() if n > _told[what]}
    _told.update(calls)
    return Done(result, calls)


def _follow(given: dict[str, str]) -> None:
    """Make the story's settings those of this process, and forget those of the story before."""
    for name in Settings.model_fields:
        if name not in _STAYS:
            os.environ.pop(f"SDFLOW_{name}".upper(), None)
    os.environ.update(given)


def _node() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()[:12]


def _assigned_gpus() -> list[str]:
    import ray

    return sorted(str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"])


def _settle_on(gpus: list[str]) -> None:
    """Compute on the GPU that the cluster has set aside for this task, and on no other.

    The cluster may give a process another GPU for its next task. A process cannot change which devices it
    sees once it has used one, so it sees all of its node and is told the number.
    """
    if gpus != _gpus:
        forget_models()  # they lie on the GPU before, which is somebody else's now
        _gpus[:] = gpus
    if not gpus or not settings().device.startswith("cuda"):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    number = visible.split(",").index(gpus[0]) if visible else int(gpus[0])
    os.environ["SDFLOW_DEVICE"] = f"cuda:{number}"
    import torch

    torch.cuda.empty_cache()
    torch.cuda.set_device(number)


def _same_store(job: Job) -> None:
    """The story has a marker in its store while it runs; a store without it is another one."""
    if job.parent in _stories:
        return
    store = store_at(job.store)
    if marker_of(store, job.parent) is None:
        raise ContractError(
            "a node of the cluster does not see the story's store",
            where=store.uri,
            todo="use an object store or a shared folder, and the same AWS_ENDPOINT_URL on every node",
        )
    _stories.add(job.parent)


def _crosses(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
