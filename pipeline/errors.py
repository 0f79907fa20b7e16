"""What can go wrong at the front desk.

PipelineError
├── RecipeError      the request is wrong: every field concerned, the rule, the value (exit code 2)
└── SourceNotFound   the data named in the request is not there (exit code 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PipelineError(Exception):
    """The front desk cannot go on; the message says what, why and what to type next."""


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One thing wrong with one field, in the hosted trainer's terms."""

    loc: tuple[str | int, ...]
    type: str
    msg: str
    input: object = None

    @property
    def shown_input(self) -> str:
        """The value as it came, unless the message tells it."""
        return "" if self.input is None else f"; got {self.input!r}"

    def as_json(self) -> dict[str, object]:
        """loc, type, msg, input; `loc` begins with `body` as the hosted trainer's does."""
        return {"loc": ["body", *self.loc], "type": self.type, "msg": self.msg, "input": self.input}


class RecipeError(PipelineError):
    """The request is wrong. Holds every field concerned."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        lines = [f"  {'.'.join(map(str, error.loc))}: {error.msg}{error.shown_input}" for error in self.errors]
        count = "1 field is" if len(self.errors) == 1 else f"{len(self.errors)} fields are"
        super().__init__(
            "\n".join([f"{count} wrong:", *lines, "`sa3-trainer run --help` lists every field with its range."])
        )


class SourceNotFound(PipelineError):
    """The data named in the request is not there."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"{where}: {why}. Give the path of a .zip or a folder of clips with a .txt caption beside each."
        )
