"""Bounded, ordered stages in threads: work flows through a task while memory stays where it is."""

from .pace import Pace
from .stages import Stage, Through, batched, flattened, streaming

__all__ = ["Pace", "Stage", "Through", "batched", "flattened", "streaming"]
