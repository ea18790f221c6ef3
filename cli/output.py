"""What reaches the screen: text for people, one JSON object for programs, progress where somebody waits."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import typer

    from sdflow_core.records.store import Store

__all__ = ["Progress", "State", "in_words", "progress", "result", "say", "state", "table"]

QUIET_SECONDS = 2.0


@dataclass
class State:
    """The options that all commands share."""

    store_uri: str
    json: bool = False

    def store(self) -> Store:
        """Opens the store; nothing is read or written yet."""
        from sdflow_core.records.store import open_store

        return open_store(self.store_uri)


def state(context: typer.Context) -> State:
    """The shared options of the running command."""
    found = context.find_root().obj
    assert isinstance(found, State)  # the callback of cli.main has run
    return found


def say(now: State, text: str) -> None:
    """One line for people; nothing under --json."""
    if not now.json:
        print(text, flush=True)


def result(now: State, document: Mapping[str, Any], show: Callable[[], None] | str | None = None) -> None:
    """Ends a command: under --json the document as the last line, else what `show` prints.

    Args:
        now: The shared options.
        document: Plain JSON values; others are written as text.
        show: Prints the answer for people, or is that answer.
    """
    if now.json:
        print(json.dumps(document, sort_keys=True, default=str, ensure_ascii=False), flush=True)
    elif callable(show):
        show()
    elif show is not None:
        print(show, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people. Outside a terminal nothing is cut: a cell keeps its whole text."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for name in columns:
        drawn.add_column(Text(name), overflow="fold")
    for row in rows:
        # Text, not markup: a file may be called "[bold]".
        drawn.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    if sys.stdout.isatty():
        console.print(drawn)
        return
    with console.capture() as capture:
        console.print(drawn)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)


def in_words(value: object) -> str:
    """A value for a cell: names with what they have, one entry of a list a line, nothing of Python's.

    Example:
        >>> in_words({"smiling": {"n": 6, "tries": None}, "young": {"n": 1}})
        'smiling (n: 6, tries: -), young (n: 1)'
    """
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        pairs = cast(Mapping[object, object], value).items()
        parts = [(name, in_words(inner), isinstance(inner, Mapping)) for name, inner in pairs]
        return ", ".join(f"{name} ({said})" if deep else f"{name}: {said}" for name, said, deep in parts)
    if isinstance(value, list | tuple):
        return "\n".join(in_words(entry) for entry in cast(list[object], value))
    return str(value)


class Progress:
    """Counts what is done. `advance` may be called from any thread."""

    def __init__(self, drawn: Any, task: Any) -> None:
        self._drawn = drawn
        self._task = task
        self.done = 0

    def advance(self, count: int = 1) -> None:
        """Says that `count` more are done."""
        self.done += count
        if self._drawn is not None:
            self._drawn.update(self._task, completed=self.done)

    def busy(self, share: float) -> None:
        """Says in which share of the time the model computed: what is missing, it waited."""
        if self._drawn is not None:
            self._drawn.update(self._task, busy=share)

    def rename(self, label: str, total: int | None = None, unit: str = "images") -> None:
        """Goes on to the next phase: another label, counted from 0 in `unit`s."""
        self.done = 0
        if self._drawn is not None:
            self._drawn.reset(self._task, description=label, total=total, unit=unit, busy=None)


@contextmanager
def progress(now: State, label: str, total: int | None = None, unit: str = "images") -> Generator[Progress]:
    """A bar with `unit`/s and time left: on a terminal only, and only when work takes more than 2 seconds.

    Args:
        now: The shared options; nothing is drawn under --json.
        label: What is being done.
        total: How many there are; None when that is not known.
        unit: What is counted.

    Yields:
        The counter.
    """
    if now.json or not sys.stderr.isatty():
        yield Progress(None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Drawn
    from rich.text import Text

    class Speed(ProgressColumn):
        """How many a second."""

        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            busy = task.fields.get("busy")
            model = "" if busy is None else f", model {busy:.0%} busy"
            return Text("" if speed is None else f"{speed:.1f} {task.fields.get('unit', unit)}/s{model}")

    drawn = Drawn(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = drawn.add_task(label, total=total)
    timer = threading.Timer(QUIET_SECONDS, drawn.start)
    timer.daemon = True
    timer.start()
    try:
        yield Progress(drawn, task)
    finally:
        timer.cancel()
        timer.join()
        drawn.stop()
