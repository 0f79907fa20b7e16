"""Commands that a message advises, for the store that it is about. Light: standard library only."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DEFAULT_STORE = Path("artifacts")
"""The store of every command that names none."""
_QUOTED = re.compile(r"`(sa3-trainer (?:status|gc|evict)(?: [^`]*)?)`")
"""Commands about a store alone, as messages quote them."""


def store_option(store: Path) -> str:
    """` --store PATH`, as it must be typed; empty for the default store."""
    return "" if store.absolute() == DEFAULT_STORE.absolute() else f" --store {shlex.quote(str(store))}"


def with_store(message: str, store: Path) -> str:
    """A message with the store named in the commands that it advises."""
    option = store_option(store)
    return _QUOTED.sub(lambda found: found[0] if "--store" in found[1] else f"`{found[1]}{option}`", message)
