"""Progress in the lines that a command prints, and which of them are logged. Light: standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

_PROGRESS = re.compile(r"(ingest|encode|train|generate)\s+(\d+)/(\d+)(?:\s+(.*))?")
_LOSS = re.compile(r"\bloss (\d[\d.e+-]*)")
MARKS = 100
"""Progress is logged about this many times per stage: callers print every line of every poll."""


def progress_in(line: str) -> dict[str, Any] | None:
    """stage, done, total and, while training, loss and note of a progress line; None for any other line."""
    found = _PROGRESS.fullmatch(line.strip())
    if found is None:
        return None
    stage, done, total, note = found.groups()
    loss = _LOSS.search(note or "")
    facts = {"stage": stage, "done": int(done), "total": int(total)}
    return facts | ({"loss": float(loss[1])} if loss else {})


@dataclass
class Throttle:
    """Lets a progress line through when another hundredth of its stage is done."""

    _last: dict[tuple[str, int], int] = field(default_factory=dict)

    def due(self, progress: dict[str, Any] | None) -> bool:
        """Whether a line with this progress is to be logged; a line without any is."""
        if progress is None:
            return True
        stage, done, total = progress["stage"], progress["done"], max(1, progress["total"])
        mark = MARKS * done // total
        if self._last.get((stage, total)) == mark:
            return False
        self._last[stage, total] = mark
        return True
