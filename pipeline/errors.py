"""What can go wrong at the front desk.

PipelineError
├── RecipeError      the request is wrong: every field concerned, the rule, the value (exit code 2)
├── SourceNotFound   the data or the adapter named in the request is not there (exit code 2)
├── NothingToEvict   nothing in the store fits what was asked to go
├── NoStore          the folder of the store is not there
├── StillNeeded      all that was asked to go is needed by a run that stays
├── OverBudget       the store cannot be made that small without dropping a kept run
├── StoreDamaged     verify found damage
├── ClipNotFound     explain was asked about a clip that the data does not hold
└── NotFit           doctor found something that will not work
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class PipelineError(Exception):
    """The front desk cannot go on; the message says what, why and what to type next."""

    is_told = False
    """Whether standard output holds the whole of it already, in the document of the command that found it."""


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

    def __init__(self, errors: Sequence[FieldError], command: str = "run") -> None:
        """`command`: whose help lists the fields."""
        self.errors = tuple(errors)
        lines = [f"  {'.'.join(map(str, error.loc))}: {error.msg}{error.shown_input}" for error in self.errors]
        count = "1 field is" if len(self.errors) == 1 else f"{len(self.errors)} fields are"
        super().__init__(
            "\n".join([f"{count} wrong:", *lines, f"`sa3-trainer {command} --help` lists every field with its range."])
        )


class SourceNotFound(PipelineError):
    """The data or the adapter named in the request is not there."""

    def __init__(self, where: str, why: str, remedy: str) -> None:
        super().__init__(f"{where}: {why}. {remedy}")


class NothingToEvict(PipelineError):
    """Nothing in the store fits what was asked to go."""

    def __init__(self, store: Path) -> None:
        super().__init__(f"{store} holds nothing that fits. `sa3-trainer status --store {store}` lists what is there.")


class NoStore(PipelineError):
    """The folder of the store is not there."""

    def __init__(self, store: Path) -> None:
        super().__init__(f"there is no folder {store}. --store names another; the first run makes the store.")


class StillNeeded(PipelineError):
    """All that was asked to go is needed by a run that stays."""

    def __init__(self, kept: Sequence[str]) -> None:
        self.kept = tuple(kept)
        lines = "\n".join(f"  {line}" for line in kept)
        super().__init__(f"nothing was removed:\n{lines}\nName the runs that need it as well, and they go together.")


class OverBudget(PipelineError):
    """The store cannot be made that small without dropping a kept run."""

    is_told = True

    def __init__(self, limit: int, left: int) -> None:
        super().__init__(
            f"{left:,} bytes are left where {limit:,} were asked for: all of it is needed by finished or unfinished "
            "trainings. `sa3-trainer evict --older-than 30d` drops old trainings, `sa3-trainer status` lists them."
        )


class StoreDamaged(PipelineError):
    """verify found damage that is still there."""

    is_told = True

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(
            f"{count} thing{'s are' if count != 1 else ' is'} damaged. "
            "`sa3-trainer verify --repair` removes exactly what is damaged; then the same run makes it again."
        )


class ClipNotFound(PipelineError):
    """explain was asked about a clip that the data does not hold."""

    def __init__(self, clip: str, near: Sequence[str]) -> None:
        hint = f" Near names: {', '.join(near)}." if near else ""
        super().__init__(f"the data holds no clip {clip!r}.{hint} `sa3-trainer explain DATA` lists every clip.")


class NotFit(PipelineError):
    """doctor found something that will not work."""

    is_told = True

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} check{'s' if count != 1 else ''} failed; the lines above say what to do.")


class FetchFailed(PipelineError):
    """An address could not be fetched, or what came is not what it should be. What had come of it is said."""

    def __init__(self, field: str, address: str, why: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"{field} {address}: {why}. {remedy}")

    def as_json(self) -> dict[str, object]:
        """The hosted trainer's error entry."""
        return {"loc": ["body", self.field], "type": "file_download_error", "msg": str(self)}


class PlaceUnusable(PipelineError):
    """The store or the output folder cannot be written."""

    def __init__(self, flag: str, folder: Path, why: str) -> None:
        super().__init__(
            f"--{flag} {folder} cannot be written ({why}). Name a folder on a disk with room, then run again."
        )
