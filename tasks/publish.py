"""Approved edits -> a release: pixels checked again, only metadata added."""

from __future__ import annotations

from sdflow_core.records.config import Config
from sdflow_core.records.decisions import load_edit_run
from sdflow_core.records.releases import locate, release
from tasks import recipes
from tasks.runtime import settings, store_at
from tasks.step import StepRun, step


class ReleaseRef(Config):
    """A release.

    Attributes:
        release_id: Its id: the same outputs to the same target have the same id.
        target: Where it went.
        outputs: Addresses of the released files.
        withheld: edit id -> why it was not released.
    """

    release_id: str
    target: str
    outputs: tuple[str, ...]
    withheld: dict[str, str]


def dataset_of(edit_run: str, store: str) -> str:
    """Dataset that an edit run belongs to.

    Raises:
        NotFoundError: No such run.
    """
    return load_edit_run(store_at(store or settings().store), edit_run).dataset


@step("publish")
def publish_release(run: StepRun, edit_run: str, target: str) -> ReleaseRef:
    """Write what is approved to the target, then the release's entry."""
    run.using(recipes.publish())
    done = release(run.store, edit_run, target, run.run)
    return ReleaseRef(
        release_id=done.release_id,
        target=target,
        outputs=tuple(locate(run.store, o.uri) for o in done.outputs),
        withheld=dict(done.withheld),
    )
