"""The frame of every flow: pins the bundle, gives the story a run id, and records how it ended."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sdflow_core.records.errors import SDFlowError
from sdflow_core.records.leases import is_live, lease
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.reconcile import close_run, marker_of, open_run
from sdflow_core.records.store import Store
from tasks.fan_out import check_runner
from tasks.runtime import pin_bundle, settings, store_at
from tasks.step import Job

# Prefect keeps nothing of ours: results are references, and the records decide what is done.
QUIET: dict[str, Any] = {
    "persist_result": False,
    "log_prints": False,
    "validate_parameters": True,
    "retries": 0,
}


@contextmanager
def story(
    name: str, dataset: str, store: str = "", parent: str = "", *, bundle: bool = True, pinned: str = ""
) -> Generator[Job]:
    """START, then COMPLETE or FAIL, around a flow's body.

    The outermost story holds a lease while it runs, and every story has a marker until its last event: what
    is killed is found by `reconcile`.

    Args:
        name: Of the story.
        dataset: It works on.
        store: Address; empty: the setting.
        parent: Run id of the story that contains this one; empty at the top.
        bundle: Whether models are used, so that a bundle must be in force.
        pinned: Digest of the bundle that the containing story pinned; empty: the one in force now.

    Yields:
        The job that every step is given.
    """
    opened = store_at(store or settings().store)
    if not parent:  # else the containing story has just done so
        opened.check_writable()
        if bundle:
            check_runner()  # before a million pictures are listed for a cluster that is not there
    digest = (pinned or pin_bundle(opened).digest) if bundle else ""
    run = uuid.uuid4().hex
    lineage = Lineage(opened)

    def say(event: Any, error: str | None = None) -> None:
        lineage.emit(
            event,
            run=run,
            job=name,
            parent=parent or None,
            inputs=[],
            outputs=[],
            recipe=None,
            bundle=digest or None,
            config=None,
            error=error,
        )

    with ExitStack() as held:
        root = _root(opened, run, parent)
        if root == run:
            held.enter_context(lease(opened, run, name))
        open_run(opened, run, job=name, dataset=dataset, parent=parent, root=root)
        say("START")
        try:
            yield Job(store=opened.uri, dataset=dataset, bundle=digest, parent=run, root=root)
        except KeyboardInterrupt:
            with suppress(SDFlowError):
                say("ABORT")
                close_run(opened, run)
            raise
        except Exception as error:
            # What ended the story is told, also when the store takes no more events; its marker stays then,
            # and `reconcile` writes the end that is missing.
            with suppress(SDFlowError):
                say("FAIL", f"{type(error).__name__}: {error}")
                close_run(opened, run)
            raise
        say("COMPLETE")
        close_run(opened, run)


def _root(store: Store, run: str, parent: str) -> str:
    """The run whose lease this story shares; its own where no containing story is known to be alive."""
    if not parent:
        return run
    above = marker_of(store, parent)
    root = above.root if above is not None else parent
    return root if is_live(store, root) else run
