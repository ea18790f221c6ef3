"""A model's card as tables: what it is, its figures with their commands, groups of people, reliability."""

from __future__ import annotations

import json
from typing import Any, cast

from cli.output import table

__all__ = ["print_card"]

_TABLES = (
    "metrics",
    "groups",
    "groups_command",
    "worst",
    "mean",
    "reliability",
    "known_failures",
    "calibration",
)
_COLUMNS = 4  # figures side by side: more do not fit a terminal


def print_card(card: dict[str, Any]) -> None:
    """Print a card; parts that it does not have are left out."""
    plain = [(key, _text(value)) for key, value in card.items() if key not in _TABLES]
    table("Model", ("what", "is"), plain)
    _metrics(_mapping(card.get("metrics")))
    worst = _mapping(card.get("worst"))
    if worst:
        mean = _mapping(card.get("mean"))
        rows = [
            (key, _text(mean.get(key)), _text(w.get("value")), w.get("group")) for key, w in worst.items()
        ]
        table("Groups: mean and worst", ("figure", "mean", "worst", "group"), rows)
    _groups(_mapping(card.get("groups")), str(card.get("groups_command") or ""))
    fitted = _mapping(card.get("calibration"))
    if fitted:
        rows = [(a, *(_text(f.get(k)) for k in ("slope", "offset"))) for a, f in fitted.items()]
        table("Calibration", ("attribute", "slope", "offset"), rows)
    for attribute, curve in _mapping(card.get("reliability")).items():
        rows = [tuple(_text(b[key]) for key in ("mean_score", "share_true", "count")) for b in curve]
        table(f"Reliability: {attribute}", ("mean score", "share true", "count"), rows)
    failures = card.get("known_failures")
    if failures:
        print("Known failures:")
        for line in [failures] if isinstance(failures, str) else failures:
            print(f"  - {line}")


def _metrics(metrics: dict[str, Any]) -> None:
    """Figures with worst group; each command once, below."""
    if not metrics:
        return
    rows: list[tuple[Any, ...]] = []
    commands: list[str] = []
    for key, found in _flat(metrics):
        if isinstance(found, dict):
            figure = cast(dict[str, Any], found)
            worst = _mapping(figure.get("worst"))
            command = str(figure.get("command") or "")
            if command and command not in commands:
                commands.append(command)
            mark = f"[{commands.index(command) + 1}]" if command else ""
            rows.append(
                (key, _text(figure["value"]), _text(worst.get("value")), worst.get("group", ""), mark)
            )
        else:
            rows.append((key, _text(found), "", "", ""))
    table("Figures", ("figure", "value", "worst group", "which", "by"), rows)
    for number, command in enumerate(commands, start=1):
        print(f"[{number}] {command}")


def _groups(groups: dict[str, Any], command: str) -> None:
    names = list(dict.fromkeys(key for row in groups.values() for key in row if key != "n"))
    for start in range(0, len(names), _COLUMNS) if names else ():
        some = names[start : start + _COLUMNS]
        rows = [(g, _text(row.get("n")), *(_text(row.get(k)) for k in some)) for g, row in groups.items()]
        table("Groups of people", ("group", "photographs", *some), rows)
    if groups and command:
        print(f"Groups, calibration, reliability: {command}")


def _flat(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(name, figure) of metrics nested in any depth; a figure is a plain value or has a `value`."""
    out: list[tuple[str, Any]] = []
    for key, found in metrics.items():
        inner = _mapping(found)
        if inner and "value" not in inner:
            out += _flat(inner, f"{prefix}{key} ")
        else:
            out.append((prefix + key, found))
    return out


def _mapping(found: object) -> dict[str, Any]:
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
