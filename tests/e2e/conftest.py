"""One finished small demo for all end-to-end tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import SMALL, sdflow


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store in which the small demo ran once, and what it printed."""
    store = tmp_path_factory.mktemp("demo") / "store"
    return store, sdflow(store, *SMALL)
