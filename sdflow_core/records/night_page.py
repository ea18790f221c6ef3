"""The night's report as one HTML file: no script, nothing loaded from elsewhere, light and dark.

Contact sheets are embedded, not linked: the page must show the same faces wherever the store lies,
also behind signed addresses. It therefore lies under `private/`, like the sheets themselves.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from .drift import BINS, Drift
from .night_report import STORIES, NightReport, next_steps

__all__ = ["document", "page"]


def document(report: NightReport) -> dict[str, Any]:
    """The JSON twin: plain values, no picture, no name of a file or a person."""
    plain = report.model_dump(mode="json")
    for part in plain["datasets"]:
        if part["sources"]:
            part["sources"] = {_SHORT.get(name, name): value for name, value in part["sources"].items()}
    return {
        **plain,
        "status": "broken" if report.broken else "done",
        "totals": report.totals(),
        "overdue": [waiting.edit_run for waiting in report.overdue()],
        "todo": [step.model_dump(mode="json") for step in next_steps(report)],
    }


_SHORT = {"total": "in", "tried": "new"}


def page(report: NightReport, sheets: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        report: What to show.
        sheets: Contact sheets (PNG) by edit run, of runs in which something waits.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("sdflow_core.records").joinpath("night_page.html").read_text("utf-8")
    totals = report.totals()
    shown = ("in", "new", "edited", "gated", "waiting", "failed", "refused_by_consent", "model_calls")
    return environment.from_string(template).render(
        r=report,
        todo=next_steps(report),
        totals=[(name.replace("_", " "), totals[name]) for name in shown],
        enabled=sum(part.state != "off" for part in report.datasets),
        stories=STORIES,
        seconds=_seconds,
        figures_of=_figures,
        bars=_bars,
        tone=_tone,
        overdue={waiting.edit_run for waiting in report.overdue()},
        now=datetime.fromisoformat(report.time),
        sheets={run: base64.b64encode(data).decode() for run, data in sheets.items()},
    )


def _seconds(value: float) -> str:
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _figures(part: Any) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    if part.sources:
        s = part.sources
        found += [
            ("in", s.total),
            ("new", s.tried),
            ("kept", s.kept),
            ("dropped", s.dropped),
            ("failed", s.failed),
        ]
    if part.edits:
        e = part.edits
        found += [("edited", e.rendered), ("waiting", e.waiting), ("gated", e.gated)]
        found += [("refused by consent", e.refused_by_consent)]
    return [*found, ("model calls", part.calls)]


def _tone(one: Drift) -> str:
    return {"stable": "good", "some shift": "warn", "shifted": "bad"}.get(one.verdict, "soft")


def _bars(one: Drift) -> str:
    """A small drawing of two histograms; numbers only, so nothing in it needs escaping."""
    shares = [count / (sum(one.now) or 1) for count in one.now]
    learned = [count / sum(one.training) for count in one.training]
    top = max([*shares, *learned, 1e-9])
    tall = [10 * share / top for share in shares]
    rects = "".join(
        f'<rect class="now" x="{i + 0.1:.1f}" width=".8" y="{10 - height:.2f}" height="{height:.2f}"/>'
        for i, height in enumerate(tall)
    )
    heights = [f"{10 - 10 * share / top:.2f}" for share in learned]
    steps = " ".join(f"{i},{height} {i + 1},{height}" for i, height in enumerate(heights))
    line = f'<polyline class="was" points="{steps}"/>' if learned else ""
    label = f"Histogram of {one.rows} scores in {BINS} bins"
    return (
        f'<svg viewBox="0 -0.3 {BINS} 10.6" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{rects}{line}</svg>"
    )
