"""Help in two tiers: what most people set, and with --help-all every field that the command uses. Light: Typer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from pipeline.request.fields import FIELDS, HOSTED, SECTIONS
from stages.field import Field

FIRST = (*HOSTED, "trigger_phrase", "captions", "skip_bad", "weights", "store", "output", "name", "device")
"""Fields of the first tier: the hosted trainer's, and the few others that most people set first."""
_STAGES = {"ingest": ("", "ingest"), "encode": ("", "ingest", "encode")}
_UNUSED = {"ingest": ("output", "name", "weights", "threads", "device"), "encode": ("output", "name")}
_ALL = "every field"


def uses(command: str, field: Field) -> bool:
    """Whether a field has any effect on the command: its help leaves out the others."""
    return field.stage in _STAGES.get(command, (field.stage,)) and field.name not in _UNUSED.get(command, ())


def show_all(ctx: typer.Context, wanted: bool) -> None:
    """Callback of --help-all."""
    if wanted:
        ctx.meta[_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit()


class FieldCommand(TyperCommand):
    """A command whose help lists its fields under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, fields and other options."""
        records = {option.name: option.get_help_record(ctx) for option in self.get_params(ctx)}
        names = [field.name for field in FIELDS]
        _write(formatter, "Arguments", [records.pop(name) for name in ("data", "clip") if name in records])
        others = [record for name, record in records.items() if name not in names]
        used = [field for field in FIELDS if uses(str(ctx.info_name), field)]
        if ctx.meta.get(_ALL):
            _write(formatter, "Options", others)
            for title in SECTIONS:
                _write(formatter, title, [records[field.name] for field in used if field.section == title])
            return
        first = [field for field in used if field.name in FIRST]
        _write(formatter, "Fields", [records[field.name] for field in sorted(first, key=_position)])
        _write(formatter, "Options", others)
        formatter.write_paragraph()
        formatter.write_text(f"{len(used) - len(first)} more fields: {ctx.command_path} --help-all")


def _position(field: Field) -> int:
    return FIRST.index(field.name)


def _write(formatter: Any, title: str, records: Sequence[Any]) -> None:
    if records := [record for record in records if record is not None]:
        with formatter.section(title):
            formatter.write_dl(records)
