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

from stages.plural import is_or_are, pluralized


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

    command = "run"
    """Whose help lists the fields; `reported_errors` sets the one that was typed."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors)

    def __str__(self) -> str:
        lines = [f"  {'.'.join(map(str, error.loc))}: {error.msg}{error.shown_input}" for error in self.errors]
        count = "1 field is" if len(self.errors) == 1 else f"{len(self.errors)} fields are"
        where = f"`sa3-trainer {self.command} --help` lists every field with its range."
        return "\n".join([f"{count} wrong:", *lines, where])


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


NEEDS = {
    "finished trainings": "`sa3-trainer evict --older-than 30d` drops old trainings",
    "unfinished runs": "`sa3-trainer evict NAME` drops an unfinished run",
}
"""Who may need what is left in a store, and what lets it go."""


class OverBudget(PipelineError):
    """The store cannot be made that small without dropping a kept run."""

    is_told = True

    def __init__(self, limit: int, left: int, needed: int, needed_by: Sequence[str]) -> None:
        """`needed`: bytes of what is left that runs need; `needed_by`: which, of `NEEDS`."""
        others = "base weights, fetched archives and the like, which gc leaves alone"
        needs = f"{needed:,} are needed by {' and '.join(needed_by)}, {left - needed:,} are {others}"
        parts = needs if needed_by else f"all of it is {others}"
        remedies = [NEEDS[one] for one in needed_by]
        remedy = ", ".join([*remedies, "`sa3-trainer status` lists them"]) if remedies else "Give a larger --max-bytes"
        super().__init__(f"{left:,} bytes are left where {limit:,} were asked for: {parts}. {remedy}.")


class StoreDamaged(PipelineError):
    """verify found damage that is still there."""

    is_told = True

    def __init__(self, count: int, num_gone: int = 0) -> None:
        """`num_gone`: how many of these are gone already, so that no repair has anything to do about them."""
        self.count = count
        said = f"{pluralized(count, 'thing')} {is_or_are(count)} damaged. "
        remedy = "`sa3-trainer verify --repair` removes exactly what is damaged; then the same run makes it again."
        if count == num_gone:
            said = f"{pluralized(count, 'thing')} {is_or_are(count)} missing, and nothing is damaged. "
            remedy = "The commands above make again what is missing; there is nothing to repair."
        super().__init__(said + remedy)


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
