"""The `sdflow` command: its shared options, and what becomes of every way to end.

Exit codes: 0 done, 1 unexpected error, 2 wrong input or a broken record, 3 a person must decide (gate,
approval, policy), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cli import (
    audit,
    decide,
    deploy,
    doctor,
    evaluate,
    fetch,
    leftovers,
    models,
    nightly,
    paste,
    plan,
    pretrain,
    refresh,
    stale,
    up,
    verify,
    why,
)
from cli.output import State

__all__ = ["app", "build", "main"]

DEFAULT_STORE = "./sdflow-store"
_EPILOG = "--store and --json may stand before or after the command."


def build() -> typer.Typer:
    """The command with all its nouns."""
    made = typer.Typer(
        name="sdflow",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Semantic face editing by normalizing flows: from images to reviewed, published edits.",
        epilog=_EPILOG,
    )
    made.callback()(_shared)
    nouns = (
        decide,
        audit,
        why,
        fetch,
        paste,
        nightly,
        plan,
        stale,
        refresh,
        models,
        up,
        deploy,
        doctor,
        evaluate,
        verify,
        leftovers,
        pretrain,
    )
    for noun in nouns:
        noun.register(made)
    from cli.stories import register

    register(made)
    return made


def _shared(
    context: typer.Context,
    store: Annotated[
        str, typer.Option("--store", envvar="SDFLOW_STORE", metavar="URI", help="Where everything is kept.")
    ] = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")] = False,
) -> None:
    from sdflow_core.records.addresses import checked_address

    context.obj = State(checked_address(store, "store"), as_json)


def _hoisted(arguments: Sequence[str]) -> list[str]:
    """Moves --store and --json in front of the command, where the shared options are read."""
    front: list[str] = []
    rest: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            rest += [word, *left]
            break
        if word == "--json" or word.startswith("--store="):
            front.append(word)
        elif word == "--store":
            front += [word, *left[:1]]
            left = left[1:]
        else:
            rest.append(word)
    return front + rest


def app(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; never raises and never shows a traceback."""
    import warnings

    words = _hoisted(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    if not sys.warnoptions:
        # What libraries say about each other is of no use to the person at the screen.
        warnings.simplefilter("ignore")
    try:
        code = build()(words, prog_name="sdflow", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # how this version of typer says that Ctrl-C was pressed
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        _fail(as_json, "interrupted; run the same command again to go on", kind="Interrupted", code=130)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _explain(error, words, as_json)


def _explain(error: Exception, words: Sequence[str], as_json: bool) -> int:
    from sdflow_core.records.errors import ApprovalError, PolicyError, QualityGateError, SDFlowError

    if isinstance(error, SDFlowError):
        code = 3 if isinstance(error, QualityGateError | ApprovalError | PolicyError) else 2
        _fail(as_json, str(error), kind=type(error).__name__, code=code)
        return code
    usage: Any = error
    if hasattr(usage, "format_message"):  # typer's own errors: an unknown option, a missing argument
        if type(error).__name__ == "NoArgsIsHelpError":
            print(usage.format_message())
            return 0
        context = getattr(usage, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        said = usage.format_message()
        _fail(
            as_json,
            (said if said.endswith((".", "!", "?")) else said + ".") + hint,
            kind="UsageError",
            code=2,
        )
        return 2
    where = _log(error, words)
    what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    text = f"unexpected error: {what} The details are in {where}."
    _fail(as_json, text, kind="UnexpectedError", code=1, log=where)
    return 1


def _fail(as_json: bool, text: str, *, kind: str, code: int, **more: str) -> None:
    print(f"sdflow: {text}", file=sys.stderr, flush=True)
    if as_json:
        document = {"error": {"kind": kind, "message": text, "exit_code": code, **more}}
        print(json.dumps(document, sort_keys=True, ensure_ascii=False), flush=True)


def _log(error: Exception, words: Sequence[str]) -> str:
    """Keeps the traceback in the store's logs, or in a temporary file where the store cannot be written."""
    import tempfile
    import traceback
    import uuid
    from datetime import UTC, datetime

    from sdflow_core.records.store import open_store

    uri = os.environ.get("SDFLOW_STORE", DEFAULT_STORE)
    for number, word in enumerate(words):
        if word.startswith("--store="):
            uri = word.removeprefix("--store=")
        elif word == "--store" and number + 1 < len(words):
            uri = words[number + 1]
    text = "".join(traceback.format_exception(error))
    data = f"sdflow {' '.join(words)}\n\n{text}".encode("utf-8", "backslashreplace")
    name = f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{uuid.uuid4().hex[:8]}.txt"
    try:
        store = open_store(uri)
        store.create(f"logs/{name}", data)
        return store.url(f"logs/{name}")
    except Exception:  # whatever is wrong with the store, the report must not be lost with it
        with tempfile.NamedTemporaryFile("wb", prefix="sdflow-", suffix=f"-{name}", delete=False) as file:
            file.write(data)
        return file.name


def main() -> None:
    """Entry point of the `sdflow` script."""
    import logging

    # Prefect's log lies on the store's disk. When that is full, the one message is ours, and no traceback of
    # `logging` stands before it.
    logging.raiseExceptions = False
    sys.exit(app())


if __name__ == "__main__":
    main()
