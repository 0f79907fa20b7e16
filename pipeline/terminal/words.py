"""An activity in words: one line of a log, or as much of it as fits on a terminal. Light: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.terminal.activity import Activity
from stages.plural import duration

SHOWN_AFTER_SECONDS = 3.0
"""A phase that lasts longer also shows for how long it has lasted."""
ARROWS = {"falling": "↓", "level": "→", "rising": "↑"}
MOST_NOTE = 32
LEAST_BYTES = 1e6
"""Of less, no sizes and speeds are shown."""
LEAST_BAR = 8
"""Cells."""


@dataclass(frozen=True)
class Part:
    """A piece of the line, and how much it is wanted where not all fit: 0 is always shown."""

    text: str
    rank: float


BAR = Part(" " * LEAST_BAR, 2.5)
"""Stands for the bar, which takes the cells that are left."""


def log_line(activity: Activity) -> str:
    """The whole activity, such as `train    50/400  loss 2.2269  lr 0.0001  16.54 steps/s  21 s left`."""
    if activity.phase:
        return f"{activity.stage:<7} {activity.phase} ..."
    parts = [_count(activity), activity.note, *_figures(activity), _left(activity)]
    return f"{activity.stage:<7} {'  '.join(filter(None, parts))}"


def waiting_line(activity: Activity) -> str:
    """For a log in which nothing has been reported for a while."""
    return f"{log_line(activity)}  (for {duration(activity.seconds_here)})"


def fitted_parts(activity: Activity, width: int, *, unicode: bool) -> list[Part]:
    """The parts of a line of `width` cells, two cells apart: the least wanted ones are left out first.

    Args:
        unicode: whether arrows can be shown.
    """
    parts = _phase_parts(activity) if activity.phase else [BAR, *_counted_parts(activity, unicode=unicode)]
    parts = [Part(activity.stage, 0), *parts]
    while width_of(parts) > width and (least := max(parts, key=lambda part: part.rank)).rank > 0:
        parts.remove(least)
    return parts


def width_of(parts: Sequence[Part]) -> int:
    """Cells of a line of these parts."""
    return sum(len(part.text) + 2 for part in parts) - 2


def _phase_parts(activity: Activity) -> list[Part]:
    lasted = activity.seconds_here
    since = [Part(duration(lasted), 1)] if lasted > SHOWN_AFTER_SECONDS else []
    return [Part(f"{activity.phase} ...", 0), *since]


def _counted_parts(activity: Activity, *, unicode: bool) -> list[Part]:
    figures, trend = activity.figures, activity.trend
    trend = ARROWS[trend] if trend and unicode else trend
    parts = [Part(_count(activity), 0)] if _count(activity) else []
    if "loss" in figures:
        parts.append(Part(f"loss {figures['loss']:.4f} {trend}".rstrip(), 1))
    parts += [Part(text, 3) for text in _speed(activity)]
    parts += [Part(text, 4) for text in _memory(activity)]
    if left := _left(activity):
        parts.append(Part(left, 2))
    if activity.note:
        parts.append(Part(_shortened(activity.note), 5))
    return parts


def _count(activity: Activity) -> str:
    """Clips or steps; nothing where only bytes are counted."""
    only_bytes = activity.figures.get("bytes_total") == activity.total
    return "" if only_bytes else f"{activity.done:,}/{activity.total:,}"


def _figures(activity: Activity) -> Sequence[str]:
    """Loss, rate, memory, speed."""
    figures = activity.figures
    loss = [f"loss {figures['loss']:.4f}"] if "loss" in figures else []
    rate = [f"lr {figures['learning_rate']:.2g}"] if "learning_rate" in figures else []
    return [*loss, *rate, *_memory(activity), *_speed(activity)]


def _speed(activity: Activity) -> list[str]:
    if rate := activity.figures.get("steps_per_second"):
        return [f"{rate:.2f} steps/s"]
    total, rate = activity.figures.get("bytes_total"), activity.bytes_per_second
    if not total or total < LEAST_BYTES:
        return []
    sizes = f"{activity.figures['bytes_done'] / 1e6:,.1f}/{total / 1e6:,.1f} MB"
    return [sizes] if rate is None else [sizes, f"{rate / 1e6:,.1f} MB/s"]


def _memory(activity: Activity) -> list[str]:
    used = activity.figures.get("memory_bytes")
    return [f"{used / 1e9:.1f} GB"] if used else []


def _left(activity: Activity) -> str:
    seconds = activity.seconds_left
    return "" if seconds is None else f"{duration(seconds)} left"


def _shortened(note: str) -> str:
    return note if len(note) <= MOST_NOTE else f"...{note[3 - MOST_NOTE :]}"
