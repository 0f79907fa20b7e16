"""What is known of one field of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the request."""

    name: str
    kind: str
    """`int`, `float`, `bool`, `str`, `names` (a list, or one comma or space separated string) or `choice`."""
    default: Any
    help: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    """pydantic's words: ge, gt, le, lt."""
    choices: Callable[[], list[str]] | None = None
    nullable: bool = False
    check: Callable[[str], str | None] | None = None
    """Says what is wrong with a text, or None."""
    where: str = "request"
    """`request`: changes the result. `place`: where things lie. `resource`: how fast."""
