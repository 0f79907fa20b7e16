"""Errors of a command line: their messages, exit codes and JSON documents. Light: standard library and Typer only."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Protocol

import typer
from typer.core import TyperGroup

from cache.errors import CacheError
from pipeline.early_stop import raise_from_now_on
from pipeline.errors import FetchFailed, InstallationBroken, PipelineError, RecipeError, SourceNotFound
from pipeline.path_errors import memory_errors, path_errors
from pipeline.request.fields import FIELDS
from pipeline.request.paths import arguments_with_home
from pipeline.settings.other_names import hint
from pipeline.settings.user_config import user_defaults
from pipeline.streams import print_document
from pipeline.terminal.views import EVENTS_VERSION
from stages.errors import DatasetFaults, SourceUnreadable, StageError, Stopped

DONE, FAILED, WRONG_USAGE = 0, 1, 2
"""Exit codes."""
RESUMING = frozenset(("run", "ingest", "encode", "train"))
"""Commands that save what is done piece by piece; all others begin anew."""
_GOES_ON = "; run the same command again to continue from the last piece that was saved"

# The base class of the parser's errors: click's, or that of typer's own copy of click, depending on typer's version.
_UsageError: Any = typer.BadParameter.__mro__[1]


class JsonErrorGroup(TyperGroup):
    """The group of commands; expands `~`, and prints usage errors as JSON when --json is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = arguments_with_home(args)
        ctx.meta["arguments"] = tuple(args)
        with _usage_errors_as_json(args, self.commands):
            if HELP.isdisjoint(args):
                ctx.default_map = _own_defaults(self.commands)
            check_values(self.commands, args)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _usage_errors_as_json(ctx.meta["arguments"], self.commands):
            return super().invoke(ctx)


HELP = frozenset(("-h", "--help", "--help-all", "--version"))


def _own_defaults(commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The user's own store and device, for the commands that have no recipe. Raises: usage error."""
    try:
        own = user_defaults()
    except RecipeError as error:
        raise typer.BadParameter(str(error.errors[0].msg), param_hint=str(error.errors[0].input)) from error
    plain = {name: command for name, command in commands.items() if all(one.name != "recipe" for one in command.params)}
    return {name: _of_command(own, command) for name, command in plain.items()} if own else {}


def _of_command(own: Mapping[str, Any], command: Any) -> dict[str, Any]:
    names = [one.name for one in command.params if not getattr(one, "multiple", False)]
    return {name: own[name] for name in ("store", "device") if name in own and name in names}


def check_values(commands: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Refuse a flag without its value before the parser takes the next flag for the value. Raises: usage error."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    if name not in commands:
        return
    options = [one for one in commands[name].params if one.param_type_name == "option"]
    flags = {text for one in options for text in (*one.opts, *one.secondary_opts) if text.startswith("--")} | HELP
    valued = {text for one in options if not getattr(one, "is_flag", True) for text in one.opts}
    for word, following in pairwise(takewhile(lambda one: one != "--", arguments)):
        if word in valued and following.partition("=")[0] in flags:
            raise typer.BadParameter(f"{word} needs a value, and {following} follows; write {word}=VALUE")


@contextmanager
def _usage_errors_as_json(arguments: Sequence[str], commands: Collection[str]) -> Iterator[None]:
    """Print a usage error as JSON on stdout; the parser itself prints the message on stderr and exits with 2."""
    # Looked up now: the parser removes arguments from the list.
    as_json, command = "--json" in arguments, _command_path(arguments, commands)
    try:
        yield
    except _UsageError as error:
        if not arguments:  # its message is the help itself, to which nothing is to be added
            raise
        if "unexpected extra argument" in error.format_message():
            error.message = names_hint(arguments) or _too_many(error)
        _add_hint(error)
        error.show = partial(_show_usage_error, error, command)
        if as_json:
            message = error.format_message()
            detail = [{"loc": ["body"], "type": type(error).__name__, "msg": message}]
            print_document({"detail": detail, "message": message})
        raise


def _add_hint(error: Any) -> None:
    """Say what a flag that does not exist is called here, where that is known better than by its letters."""
    asked, command = getattr(error, "option_name", None), getattr(getattr(error, "ctx", None), "command", None)
    if not asked or command is None:
        return
    known = {str(option.name) for option in command.params}
    if known_as := hint(asked.removeprefix("--").replace("-", "_"), frozenset(known)):
        error.message, error.possibilities = f"No such option: {asked}. {known_as}", None


_PHRASES = {
    "Input should be a valid integer, unable to parse string as an integer": "it must be a whole number",
    "Input should be a valid number, unable to parse string as a number": "it must be a number",
}
"""pydantic's, with which the parser refuses the value of an option, and ours."""


def _show_usage_error(error: Any, command: str, file: Any = None) -> None:
    """Print a usage error as all others are printed; `file` is the parser's, which is stderr."""
    message = error.format_message().removesuffix(".")
    for phrase, words in _PHRASES.items():
        message = message.replace(phrase, words)
    end = "" if message.endswith("?") else "."  # "Did you mean 'run'?" is a sentence already
    print(
        f"error: {message[:1].lower()}{message[1:]}{end} `{command} --help` shows what can be given.", file=sys.stderr
    )


def _command_path(arguments: Sequence[str], commands: Collection[str]) -> str:
    """The command whose help is named; the parser's own errors do not always know it."""
    word = next((word for word in arguments if not word.startswith("-")), "")
    return f"sa3-trainer {word}" if word in commands else "sa3-trainer"


def _too_many(error: Any) -> str:
    words = error.message.partition("(")[2].partition("(")[2].removesuffix(")")
    takes_none = error.ctx is not None and all(one.param_type_name == "option" for one in error.ctx.command.params)
    return f"it takes no argument: {words}" if takes_none else f"too many arguments ({words}): {_IN_QUOTES}"


_IN_QUOTES = "a path or text with spaces goes in quotes"


def names_hint(arguments: Sequence[str]) -> str:
    """How several names are given to one flag, if more than one word follows such a flag; else nothing.

    The reference's own command line takes `--exclude a b`; here the second word would be an argument of the command.
    """
    flags = {f"--{field.name.replace('_', '-')}" for field in FIELDS if field.kind == "names"}
    for position, word in enumerate(arguments):
        flag, _, first = word.partition("=")
        words = [*([first] if first else []), *takewhile(lambda one: one[:1] != "-", arguments[position + 1 :])]
        is_first = not any(Path(one).exists() for one in arguments[:position])
        if flag in flags and len(words) > 2 and is_first and Path(words[-1]).exists():  # the last one is the data
            data = shlex.quote(words.pop())
            return f"Several names go into one word: {data} {flag} {','.join(words)}"
        if flag in flags and len(words) > 1:
            return f"Several names go into one word, and DATA before the flag: DATA {flag} {','.join(words)}"
    return ""


explain_import: Callable[[BaseException], str | None] | None = None
"""What to tell about an error of importing; the console script, which knows installations, sets it."""


def _make_setup(requirement: str = "") -> str:
    return "`make setup` installs everything again"


mend_installation: Callable[[str], str] = _make_setup
"""How this installation, or the package that is at fault, is installed again; the console script sets it, too."""


class Reporter(Protocol):
    """Tells people and programs what happened; `pipeline.report.Report` is one."""

    def tell(self, event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """`facts` for programs, `lines` for people."""

    def end_progress(self) -> None:
        """Nothing goes on any more."""


@contextmanager
def reported_errors(command: str = "run", *, as_json: bool = False, report: Reporter | None = None) -> Iterator[None]:
    """Turn the project's own errors into a message and an exit code; any other is a bug and keeps its traceback.

    Args:
        command: as it was typed.
        as_json: also print the error as a JSON document on stdout.
        report: is told the begin, the error and the end.
    """
    raise_from_now_on()
    tell = report.tell if report is not None else _print
    tell("start", {"version": EVENTS_VERSION, "command": command}, [])
    code = FAILED
    try:
        with memory_errors(), path_errors({}):
            yield
        code = DONE
    except RecipeError as error:
        error.command, code = command, WRONG_USAGE
        _fail(error, code, tell, as_json=as_json)
    except SourceNotFound as error:
        error.args = (" ".join([str(error), names_hint(sys.argv[1:])]).rstrip(),)
        code = WRONG_USAGE
        _fail(error, code, tell, as_json=as_json)
    except Stopped as error:
        code = _exit_code(error.signal_number)
        _fail(error, code, tell, as_json=as_json)
    except (PipelineError, StageError, CacheError) as error:
        _fail(error, FAILED, tell, as_json=as_json)
    except (ImportError, OSError) as error:
        if explain_import is None or (said := explain_import(error)) is None:
            raise
        _fail(InstallationBroken(said), FAILED, tell, as_json=as_json)
    except KeyboardInterrupt as error:
        words = f"stopped{_GOES_ON if command in RESUMING else ''}"
        code = _exit_code(*error.args[:1])
        tell("message", {"text": words}, [words])
        raise SystemExit(code) from None
    finally:
        if report is not None:
            report.end_progress()
        tell("end", {"exit_code": code}, [])


def _print(event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _exit_code(signal_number: int | None = None) -> int:
    """The exit code of a stop, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (signal.SIGINT if signal_number is None else signal_number)


def _fail(error: Exception, code: int, tell: Callable[..., None], *, as_json: bool) -> None:
    line = f"{error}" if isinstance(error, Stopped) else f"error: {error}"
    tell("error", {**error_json(error), "type": error_type(error), "exit_code": code}, [line])
    if as_json and not getattr(error, "in_document", False):
        print_document(error_json(error))
    raise SystemExit(code) from error


def error_type(error: Exception) -> str:
    """What programs match on."""
    return str(getattr(error, "code", type(error).__name__))


def error_json(error: Exception) -> dict[str, Any]:
    """The hosted trainer's error form: a list under `detail`, and the message."""
    if isinstance(error, RecipeError):
        entries = [entry.as_json() for entry in error.errors]
    elif isinstance(error, DatasetFaults):
        entries = [fault.as_json() for fault in error.faults]
    elif isinstance(error, FetchFailed | SourceUnreadable):
        entries = [error.as_json()]
    else:
        entries = [{"loc": ["body"], "type": error_type(error), "msg": str(error)}]
    return {"detail": entries, "message": str(error)}
