"""The frame of every flow: pins the bundle, gives the story a run id, and records how it ended."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sdflow_core.records.lineage import Lineage
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
    opened.check_writable()
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

    say("START")
    try:
        yield Job(store=opened.uri, dataset=dataset, bundle=digest, parent=run)
    except KeyboardInterrupt:
        say("ABORT")
        raise
    except Exception as error:
        say("FAIL", f"{type(error).__name__}: {error}")
        raise
    say("COMPLETE")
