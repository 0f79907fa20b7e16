"""One flag per field for a command, in two tiers of help. Light: Typer and the standard library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.options.report_options import REPORT_OPTIONS
from pipeline.options.tiers import show_all
from pipeline.request.fields import DATA, FIELDS
from pipeline.settings.other_names import ALIASES, flag
from stages.field import Field, extra_in_words

DATA_HELP = f"{DATA.help} (field {DATA.name})"
Parameter = inspect.Parameter


def parameter(name: str, annotation: Any, default: Any) -> Parameter:
    """A parameter of a command, which Typer makes an option of."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_DATASET_FLAGS = [flag(name) for name in ALIASES[DATA.name]]
_COMMON = (
    parameter("data", Annotated[str | None, typer.Argument(help=DATA_HELP, show_default=False)], None),
    parameter(
        "dataset", Annotated[str | None, typer.Option(*_DATASET_FLAGS, metavar="PATH", help="DATA as a flag")], None
    ),
    parameter(
        "recipe",
        Annotated[
            Path | None,
            typer.Option("--recipe", help="TOML file with the same fields, or an adapter's .json; flags win"),
        ],
        None,
    ),
    parameter("json", Annotated[bool, typer.Option("--json", help="one JSON document on stdout")], False),
    *(parameter(name, kind, default) for name, (kind, default) in REPORT_OPTIONS.items()),
)
_HELP_ALL = parameter(
    "help_all",
    Annotated[bool, typer.Option("--help-all", is_eager=True, callback=show_all, help="Show every field, by subject.")],
    False,
)


def with_fields(
    command: Callable[..., None], *more: Parameter, defaults: Mapping[str, Any] | None = None
) -> Callable[..., None]:
    """Give a command the argument DATA, --recipe, --json and one flag per field.

    Values of flags are passed on as typed, so that all of them are validated together.

    Args:
        command: called with data, recipe, json and the other flags by name.
        more: options that only some commands have.
        defaults: the command's own defaults of fields, which its help shows.
    """

    def called(data: str | None, dataset: str | None, recipe: Path | None, json: bool, **flags: Any) -> None:
        flags.pop("help_all")
        command(_data(data, dataset, flags), recipe, json, flags)

    parameters = [*_COMMON, *more, *_field_flags(tuple((defaults or {}).items())), _HELP_ALL]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


def _data(data: str | None, dataset: str | None, flags: dict[str, Any]) -> str | None:
    """The data, as an argument or as a flag; beside the flag, the argument of explain is the clip."""
    if dataset is None:
        return data
    if data is not None and "clip" in flags and flags["clip"] is None:
        flags["clip"], data = data, None
    if data is not None:
        raise typer.BadParameter(f"the data is given twice: {data} and {_DATASET_FLAGS[0]} {dataset}")
    return dataset


@cache
def _field_flags(defaults: tuple[tuple[str, Any], ...]) -> tuple[Parameter, ...]:
    """The flags of all fields, made once for all commands of the same defaults."""
    own = dict(defaults)
    return tuple(_flag(field, own.get(field.name, field.default)) for field in FIELDS)


def _flag(field: Field, default: Any) -> Parameter:
    """The flag of one field; text and numbers stay as typed."""
    name = flag(field.name)
    if field.kind == "bool":
        option = typer.Option(f"{name}/--no-{name[2:]}", help=_help(field, default), show_default=False)
        return parameter(field.name, Annotated[bool | None, option], None)
    names = [name, *map(flag, ALIASES.get(field.name, ()))]
    option = typer.Option(
        *names,
        help=_help(field, default),
        show_default=False,
        metavar=_metavar(field),
        autocompletion=_completion(field),
    )
    kind = list[str] | None if field.kind == "names" else str | None
    return parameter(field.name, Annotated[kind, option], None)


def _completion(field: Field) -> Callable[[str], list[str]] | None:
    """What a shell offers for the value of a choice."""
    if not field.choices:
        return None

    def offered(incomplete: str) -> list[str]:
        return [value for value in field.values if value.startswith(incomplete)]

    return offered


def _help(field: Field, default: Any) -> str:
    """Help text with choices, optional package and default."""
    choices = f": {', '.join(field.values)}" if field.choices else ""
    extra = f" ({extra_in_words(field)})" if field.needs else ""
    default = {False: "off", True: "on"}[default] if field.kind == "bool" else default
    return f"{field.help}{choices}{extra}" + (f" [{default}]" if default is not None else "")


def range_of(name: str) -> str:
    """Bounds of a field that has both, such as `1 to 256`."""
    limits = next(field.limits for field in FIELDS if field.name == name)
    return f"{limits['ge']} to {limits['le']}"


def _metavar(field: Field) -> str:
    """`1..256` where both bounds are known, else the type."""
    limits = field.limits
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']}..{limits['le']}"
    return field.kind.upper()
