"""Errors of the commands. Light: standard library only.

PipelineError
├── RecipeError        the request is wrong: every field concerned, the rule, the value (exit code 2)
├── SourceNotFound     the data or the adapter named in the request does not exist (exit code 2)
├── FetchFailed        an address could not be downloaded, or what it holds is wrong
├── FolderNotWritable  the store or the output folder cannot be written
├── DocstringsStripped Python removes docstrings, without which a package cannot be imported
├── PathFailed         the system refused to read or write a path
├── InstallationBroken  a package is missing or cannot be loaded
├── MemoryUsedUp       this process may use no more memory
├── StoreNotFound      the folder of the store does not exist
├── NothingToEvict     nothing in the store matches what should be removed
├── StillNeeded        everything that should be removed is needed by a run that is kept
├── NotConfirmed       trainings would be removed, and nobody said yes
├── OverBudget         the store cannot be made that small without removing a run that is kept
├── StoreDamaged       verify found damage
├── ClipNotFound       explain was asked about a clip that is not in the data
└── ChecksFailed       doctor found something that will not work
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cache.errors import verify_command
from pipeline.store_option import with_store
from stages.plural import is_or_are, pluralized, size


class PipelineError(Exception):
    """A command cannot continue; the message says what, why and what to type next."""

    code: ClassVar[str]
    """`type` of the error in JSON documents, where it differs from the name of the class: programs match on it."""
    in_document = False
    """Whether the command's own JSON document already reports it, so that no second document is printed."""


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One thing wrong with one field, in the hosted trainer's terms."""

    loc: tuple[str | int, ...]
    type: str
    msg: str
    input: object = None
    words: str = ""
    """The message for people, where `msg` is that of a library."""

    @property
    def shown_input(self) -> str:
        """The value as it was given, or nothing where the message contains it."""
        return "" if self.input is None else f"; got {self.input!r}"

    def as_json(self) -> dict[str, object]:
        """loc, type, msg, input; `loc` begins with `body` as the hosted trainer's does."""
        return {"loc": ["body", *self.loc], "type": self.type, "msg": self.msg, "input": self.input}


COMMANDS_WITH_FIELDS = ("run", "ingest", "encode", "train", "plan", "explain")
"""Their help shows the fields that most people set; --help-all shows all."""


class InstallationBroken(PipelineError):
    """A package that the project needs is missing or cannot be loaded."""


class RecipeError(PipelineError):
    """The request is wrong. Holds every field concerned."""

    command = "run"
    """The command whose help lists the fields; `reported_errors` sets the one that was typed."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors)

    def __str__(self) -> str:
        lines = [
            f"  {'.'.join(map(str, error.loc))}: {error.words or error.msg}{error.shown_input}" for error in self.errors
        ]
        count = "1 field is" if len(self.errors) == 1 else f"{len(self.errors)} fields are"
        every = "--help-all" if self.command in COMMANDS_WITH_FIELDS else "--help"
        where = f"`sa3-trainer {self.command} {every}` lists every field with its range."
        return "\n".join([f"{count} wrong:", *lines, where])


class SourceNotFound(PipelineError):
    """The data or the adapter named in the request does not exist."""

    def __init__(self, where: str, why: str, remedy: str) -> None:
        super().__init__(f"{where}: {why}. {remedy}")


class FetchFailed(PipelineError):
    """An address could not be downloaded, or what it holds is wrong; the message says what was kept."""

    def __init__(self, field: str, address: str, why: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"{field} {address}: {why}. {remedy}")

    def as_json(self) -> dict[str, object]:
        """The hosted trainer's error entry."""
        return {"loc": ["body", self.field], "type": "file_download_error", "msg": str(self)}


class FolderNotWritable(PipelineError):
    """The store or the output folder cannot be written."""

    code = "PlaceUnusable"

    def __init__(self, flag: str, folder: Path, why: str) -> None:
        super().__init__(
            f"--{flag} {folder} cannot be written ({why}). Name a folder that can be written, then run again."
        )


class PathFailed(PipelineError):
    """The system refused to read or write a path."""

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        super().__init__(f"{path}: {why}. {remedy}")


class MemoryUsedUp(PipelineError):
    """This process may use no more memory."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the memory that this process may use is used up ({why}). Finished work is kept. Stop other programs or "
            "raise the limit (`ulimit -v` shows it), or use a smaller --model or --batch-size or fewer --workers; "
            "then run the same command again."
        )


class StoreNotFound(PipelineError):
    """The folder of the store does not exist."""

    code = "NoStore"

    def __init__(self, store: Path) -> None:
        super().__init__(f"there is no folder {store}. Name another with --store; the first run creates the store.")


class NothingToEvict(PipelineError):
    """Nothing in the store matches what should be removed."""

    def __init__(self, store: Path) -> None:
        super().__init__(f"nothing in {store} matches. `sa3-trainer status --store {store}` lists what is there.")


class StillNeeded(PipelineError):
    """Everything that should be removed is needed by a run that is kept."""

    def __init__(self, kept: Sequence[str]) -> None:
        self.kept = tuple(kept)
        lines = "\n".join(f"  {line}" for line in kept)
        super().__init__(f"nothing was removed:\n{lines}\nName the runs that need it as well to remove them together.")


class NotConfirmed(PipelineError):
    """Trainings would be removed, and nobody said yes."""

    def __init__(self, trainings: Sequence[str] = (), remedy: str = "") -> None:
        """`trainings`: listed where they were not shown before."""
        if not trainings:
            super().__init__("nothing was removed.")
            return
        lines = "\n".join(f"  {line}" for line in trainings)
        count = f"{is_or_are(len(trainings))} {pluralized(len(trainings), 'training')}"
        super().__init__(f"nothing was removed. Among it {count}:\n{lines}\n{remedy}.")


REMOVAL_COMMANDS = {
    "finished trainings": "`sa3-trainer evict --older-than 30d` removes old trainings",
    "unfinished runs": "`sa3-trainer evict NAME` removes an unfinished run",
}
"""What a store's files may be needed by, and the command that removes it."""


class OverBudget(PipelineError):
    """The store cannot be made that small without removing a run that is kept."""

    in_document = True

    def __init__(
        self, store: Path, max_bytes: int, left_bytes: int, needed_bytes: int, needed_by: Sequence[str]
    ) -> None:
        """`needed_bytes`: how many of the `left_bytes` runs need; `needed_by`: keys of `REMOVAL_COMMANDS`."""
        others = "downloaded archives and other files that gc never removes"
        needs = f"{size(needed_bytes)} are needed by {' and '.join(needed_by)}, "
        needs += f"{size(left_bytes - needed_bytes)} are {others}"
        parts = needs if needed_by else f"all of it is {others}"
        remedies = [REMOVAL_COMMANDS[one] for one in needed_by]
        remedy = ", ".join([*remedies, "`sa3-trainer status` lists them"]) if remedies else "Give a larger --max-bytes"
        remedy = with_store(remedy, store)
        super().__init__(f"{size(left_bytes)} are left, more than the {size(max_bytes)} allowed: {parts}. {remedy}.")


class DocstringsStripped(PipelineError):
    """Python was started so that it removes docstrings."""

    def __init__(self) -> None:
        super().__init__(
            "Python was started without docstrings (-OO, or PYTHONOPTIMIZE=2), and the package transformers cannot be "
            "imported so. Run the same command without that; -O is fine."
        )


class StoreDamaged(PipelineError):
    """verify found damage that is still there."""

    in_document = True

    def __init__(self, store: Path, count: int, num_gone: int = 0) -> None:
        """`num_gone`: how many of these are missing altogether, so that a repair can do nothing about them."""
        self.count = count
        found = f"{pluralized(count, 'entry', 'entries')} of the store {is_or_are(count)} damaged. "
        remedy = f"`{verify_command(store, -1)}` removes only what is damaged; then the same run creates it again."
        if count == num_gone:
            found = f"{pluralized(count, 'file')} {is_or_are(count)} missing, and nothing is damaged. "
            remedy = "The commands above create what is missing again; there is nothing to repair."
        super().__init__(found + remedy)


class ClipNotFound(PipelineError):
    """explain was asked about a clip that is not in the data."""

    def __init__(self, clip: str, similar: Sequence[str]) -> None:
        hint = f" Similar names: {', '.join(similar)}." if similar else ""
        super().__init__(f"there is no clip {clip!r} in the data.{hint} `sa3-trainer explain DATA` lists every clip.")


class ChecksFailed(PipelineError):
    """doctor found something that will not work."""

    code = "NotFit"
    in_document = True

    def __init__(self, count: int) -> None:
        super().__init__(f"{pluralized(count, 'check')} failed; the lines above say what to do.")
