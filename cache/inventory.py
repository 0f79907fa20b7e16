"""A look at all that a store holds and who needs what: what upkeep decides from. Light: standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cache.receipt import Receipt
from cache.run_notes import Unfinished, unfinished
from cache.shared_files import iter_needs
from cache.store import Store, bytes_under, iter_sizes

POOLS = ("latents", "prompts", "prepared")
"""Shared folders whose files belong to the artifacts that name them. Weights and remembered bases belong to nobody."""
_NAMED = {
    "latents": re.compile(r"[0-9a-f]{32}\.[a-z0-9]+"),
    "prompts": re.compile(r"[0-9a-f]{32}\.[a-z0-9]+"),
    "prepared": re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}[^/]*\.(flac|json)"),
}
"""Files of a pool that belong to artifacts; a registry, a temporary or a stranger's file does not."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One finished artifact."""

    receipt: Receipt
    num_bytes: int
    """Of its own folder."""
    directory: Path

    @property
    def name(self) -> str:
        """`encode 0a810e2ef096`, as people see it."""
        return f"{self.receipt.stage} {self.receipt.fingerprint[:12]}"

    def shared_files(self) -> Iterator[str]:
        """Paths inside the shared folder that it names. Prepared audio goes with the facts beside it."""
        for path, _ in iter_needs(self.directory):
            yield path
            if path.endswith(".flac"):
                yield f"{path.removesuffix('.flac')}.json"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a store holds at one moment."""

    pieces: tuple[Piece, ...]
    unfinished: tuple[Unfinished, ...]
    shared: Mapping[str, int]
    """Bytes by path inside the shared folder, of the files in `POOLS` that artifacts may name."""

    def users(self, fingerprint: str, without: Iterable[str] = ()) -> list[str]:
        """Who needs an artifact: names of finished and unfinished runs that read it, but for those left out."""
        left_out = set(without)
        return [name for name, identity in self._users.get(fingerprint, ()) if identity not in left_out]

    @cached_property
    def _users(self) -> dict[str, list[tuple[str, str]]]:
        """Fingerprint -> (name, what it is left out by) of each that reads it."""
        readers = [(piece.receipt.inputs, piece.name, piece.receipt.fingerprint) for piece in self.pieces]
        readers += [(run.inputs, f"unfinished {run.short}", run.name) for run in self.unfinished]
        found: dict[str, list[tuple[str, str]]] = {}
        for inputs, name, left_out_by in readers:
            for fingerprint in inputs.values():
                found.setdefault(fingerprint, []).append((name, left_out_by))
        return found


def contents(store: Store, pools: Iterable[str] = POOLS) -> Contents:
    """Look. One small read per artifact, one stat per shared file of the pools asked for.

    Raises:
        ReceiptDamaged, NeedsDamaged: what is damaged might be needed, so nothing can be decided.
    """
    return Contents(
        pieces=tuple(_piece(store, receipt) for receipt in store.receipts()),
        unfinished=tuple(unfinished(store)),
        shared={path: size for pool in pools for path, size in pool_files(store, pool)},
    )


def pool_files(store: Store, pool: str) -> Iterator[tuple[str, int]]:
    """(path inside the shared folder, bytes) of the files in a pool that artifacts may name."""
    for name, size in iter_sizes(store.shared / pool):
        if _NAMED[pool].fullmatch(name):
            yield f"{pool}/{name}", size


def _piece(store: Store, receipt: Receipt) -> Piece:
    directory = store.directory(receipt.stage, receipt.fingerprint)
    return Piece(receipt=receipt, num_bytes=bytes_under(directory), directory=directory)
