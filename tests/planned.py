"""Rates small enough to compute with by hand."""

from __future__ import annotations

from typing import Any

from sdflow_core.capacity.rates import COUNTED, SECONDS, Rates


def rates_document(**seconds: float) -> dict[str, Any]:
    """Rates as a file holds them: all 0 but those that are given by name, with `_` for the dots."""
    known = {name.replace(".", "_"): name for name in SECONDS}
    values = {known[name]: value for name, value in seconds.items()}
    return {
        "format": 1,
        "measured": {
            "date": "2026-01-01",
            "command": "by hand",
            "machine": "paper",
            "cpus": 2,
            "load_before": 0.0,
            "load_after": 0.0,
            "versions": {},
            "rows": 10,
            "image_px": 640,
            "image_bytes": 1000,
        },
        "models": "none",
        "seconds": {name: {"value": values.get(name, 0.0), "source": "measured"} for name in SECONDS},
        "requests": {name: {} for name in COUNTED},
        "stored": {"table.latents": {"bytes_per_row": 100.0}},
        "devices": {
            "cpu": {"speedup": 1.0, "source": "measured", "note": "itself"},
            "fast": {"speedup": 10.0, "source": "assumed", "note": "a guess"},
        },
    }


def rates(**seconds: float) -> Rates:
    """The same, checked."""
    return Rates.model_validate(rates_document(**seconds))
