"""One line at the foot of a terminal that is redrawn: a bar, figures, the time left. Light: rich is imported on use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.streams import ForgivingFile
from pipeline.terminal.activity import Activity
from pipeline.terminal.words import BAR, LEAST_BAR, fitted_parts, width_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

QUIET_SECONDS = 0.2
"""Nothing is drawn before that: a command that is done by then shows no line, and needs no rich."""
WIDEST_BAR = 30


class LiveView:
    """Lines that stay, and below them the one that is redrawn. Whatever else is written to the terminal erases it."""

    tick_seconds, wants_interim = 0.15, True

    def __init__(self, stream: TextIO, raw: ForgivingFile, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.raw, self.clock, self.started = stream, raw, clock, clock()
        self._console: Console | None = None

    def tell(self, event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Write the lines above the one that is redrawn."""
        for line in lines:
            print(line, file=self.stream, flush=True)

    def show(self, activity: Activity, *, due: bool) -> None:
        """The next tick shows it."""

    def tick(self, activity: Activity) -> None:
        """Draw the line."""
        if self.clock() - self.started >= QUIET_SECONDS:
            self.raw.draw(self._rendered(activity).encode(self.stream.encoding or "utf-8", "backslashreplace"))

    def end(self) -> None:
        """Erase the line."""
        self.raw.erase()

    @property
    def console(self) -> Console:
        """Knows the width, the colours and the letters of the terminal."""
        if self._console is None:
            from rich.console import Console  # deferred: takes 50 ms

            self._console = Console(file=self.stream, highlight=False)
        return self._console

    def _rendered(self, activity: Activity) -> str:
        """The line with the terminal's codes of colours, at most one cell less than its width."""
        console, width = self.console, self.console.width - 1
        text = line(activity, width, unicode=str(console.encoding).lower().startswith("utf"))
        text.truncate(width, overflow="crop")
        with console.capture() as captured:
            console.print(text, end="", no_wrap=True, soft_wrap=True)
        return captured.get()


def line(activity: Activity, width: int, *, unicode: bool) -> Text:
    """Stage, bar and parts, in `width` cells."""
    from rich.text import Text

    parts = fitted_parts(activity, width, unicode=unicode)
    cells = min(WIDEST_BAR, LEAST_BAR + width - width_of(parts))
    text = Text(parts[0].text, style="bold")
    for part in parts[1:]:
        text.append("  ")
        if part is BAR:
            _append_bar(text, cells, activity.share, "━─" if unicode else "#-")
        else:
            text.append(part.text, style="not bold")
    return text


def _append_bar(text: Text, cells: int, share: float, letters: str) -> None:
    filled = round(cells * share)
    text.append(letters[0] * filled, style="green").append(letters[1] * (cells - filled), style="not bold")
