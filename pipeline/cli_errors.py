"""The group of commands: words that no command understands are told to programs in the form of all other errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

# The base of the parser's errors: click's, or that of typer's own copy of click, depending on typer's version.
_WrongUse: Any = typer.BadParameter.__mro__[1]


class Door(TyperGroup):
    """Prints the error document of a command line that cannot be parsed, where one with --json was asked for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = tuple(args)
        with _told(args):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _told(ctx.meta["words"]):
            return super().invoke(ctx)


@contextmanager
def _told(words: Sequence[str]) -> Iterator[None]:
    """On stdout; the parser itself goes on to tell people on stderr, and exits with 2."""
    asked = "--json" in words  # before the parser takes words away
    try:
        yield
    except _WrongUse as error:
        if asked:
            print(json.dumps(_document(type(error).__name__, error.format_message()), ensure_ascii=False))
        raise


def _document(kind: str, message: str) -> dict[str, Any]:
    return {"detail": [{"loc": ["body"], "type": kind, "msg": message}], "message": message}
