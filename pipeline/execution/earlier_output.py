"""Whether the files that have a training's name are what the same command made of its data before.

Light: standard library only.
"""

from __future__ import annotations

from pathlib import Path

from cache.fingerprint import digest_file
from cache.receipt import Receipt
from cache.store import Store
from pipeline.execution.command_line import REQUEST, command_line
from pipeline.request.recipe import Recipe

_IN_STORE = "adapter.safetensors"
_PREFIX = "sha256:"


def is_kept_from_same_command(recipe: Recipe, identity: object, adapter: Path) -> bool:
    """Whether the store holds this adapter, byte for byte, as the result of the command that is given now.

    Its data has changed since then: replacing the file loses nothing, and the name goes on to mean the newest.

    Args:
        identity: of the training whose file it is.
    """
    commands = {command_line(recipe, "run", imported=imported) for imported in (False, True)}
    receipts = Store(recipe.store).receipts("train", on_damage=lambda damage: None)
    return any(
        receipt.identity == identity
        and receipt.environment.get(REQUEST, {}).get("command") in commands
        and _holds(receipt, adapter)
        for receipt in receipts
    )


def _holds(receipt: Receipt, adapter: Path) -> bool:
    try:
        digits = digest_file(adapter).removeprefix(_PREFIX)
    except OSError:
        return False
    return any(entry.name == _IN_STORE and entry.sha256.removeprefix(_PREFIX) == digits for entry in receipt.files)
