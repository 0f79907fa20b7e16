"""Puts receipts and artifacts that lie in the folder of another artifact back where they belong.

A stray `mv`, or a backup restored into the wrong folder, leaves them so. Light: standard library only.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache.errors import ReceiptDamaged
from cache.files.atomic_files import atomic_write_bytes
from cache.fingerprint import digest_file
from cache.receipt import Receipt, read_receipt
from cache.store import RECEIPT, Store
from pipeline.maintenance.damage import Damage, path_in_store

_ASIDE = ".misplaced"


def put_back(store: Store, damages: Sequence[Damage]) -> dict[str, str]:
    """What was done about misplaced receipts, by the path of their damage.

    All are taken out of the way first, as two may have been exchanged. A receipt whose files are nowhere is dropped;
    the folder it was in is then one without a receipt.
    """
    misplaced = list(_misplaced(store, damages))
    whole = [(directory, receipt) for directory, receipt in misplaced if _matches(directory, receipt)]
    alone = [pair for pair in misplaced if pair not in whole]
    for directory, _ in whole:
        directory.replace(directory.with_name(directory.name + _ASIDE))
    for directory, _ in alone:
        (directory / RECEIPT).unlink()
    moved = {path_in_store(store, directory): _move_home(store, directory, receipt) for directory, receipt in whole}
    for _, receipt in alone:
        home = store.directory(receipt.stage, receipt.fingerprint)
        if _matches(home, receipt) and not (home / RECEIPT).exists():
            atomic_write_bytes(home / RECEIPT, receipt.to_json().encode())
    return {
        **moved,
        **{
            path_in_store(store, directory): "its own receipt was put back"
            for directory, _ in alone
            if (directory / RECEIPT).exists()
        },
    }


def _misplaced(store: Store, damages: Sequence[Damage]) -> Iterator[tuple[Path, Receipt]]:
    """(folder, receipt) of each intact receipt in another artifact's folder."""
    for damage in damages:
        directory = store.root / damage.path
        if damage.kind != "receipt":
            continue
        try:
            receipt = read_receipt(directory / RECEIPT)
        except (OSError, ReceiptDamaged):
            continue
        if store.directory(receipt.stage, receipt.fingerprint) != directory:
            yield directory, receipt


def _matches(directory: Path, receipt: Receipt) -> bool:
    """Whether a folder holds every file of a receipt."""
    return all(has_digest(directory / entry.name, entry.sha256) for entry in receipt.files)


def has_digest(file: Path, digest: str | None) -> bool:
    """Whether a file is there and holds these bytes."""
    return file.is_file() and digest_file(file) == digest


def _move_home(store: Store, directory: Path, receipt: Receipt) -> str:
    aside, home = directory.with_name(directory.name + _ASIDE), store.directory(receipt.stage, receipt.fingerprint)
    if (home / RECEIPT).exists():
        shutil.rmtree(aside)
        return f"removed; the same artifact is in {path_in_store(store, home)}"
    if home.exists():
        shutil.rmtree(home)
    home.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(home)
    return f"moved to {path_in_store(store, home)}, where it belongs"
