"""A small sqlite file that may be lost without harm: what it holds can be found again. Light: standard library only.

The memo of digests and the registry of shards are built on it. A rollback journal is used, not a write-ahead log: it
needs no memory shared between processes, so it works on network folders, and the ledger is one file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
BUSY_SECONDS = 30.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""ERROR: its tables are not ours. Without a code: a message about damage that cannot be decoded."""
_UNUSABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}


def warn(line: str) -> None:
    """Where a ledger's lines go unless it is told otherwise."""
    warnings.warn(line, RuntimeWarning, stacklevel=2)


def row_check(*fields: object) -> int:
    """crc32 of a row's fields, kept in the row: sqlite itself does not notice a flipped bit inside a value."""
    return zlib.crc32(repr(fields).encode("utf-8", "surrogatepass"))


class Ledger:
    """Tables in one sqlite file, shared by processes and threads; healed by being made anew.

    A damaged file, or one of another version, is set aside as `<name>.damaged` with a said line. A file that cannot be
    used (read-only, disk full, locked for long) is replaced by memory for this process, with a said line.
    """

    def __init__(self, file: Path, schema: str, version: int, say: Callable[[str], None] = warn) -> None:
        self.file = file
        self._schema, self._version, self._say = schema, version, say
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] = (0, 0)
        self._in_memory = False

    def rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """What a query finds; nothing, and nothing is created, when there is no file yet."""
        with self._lock:
            if not self._in_memory and not self.file.exists():
                return []
            return self._healed(lambda connection: connection.execute(statement, values).fetchall())

    def change(self, statements: Iterable[tuple[str, Sequence[Sequence[object]]]]) -> None:
        """Run each statement over each of its rows of values, all in one transaction."""
        changes = [(statement, list(rows)) for statement, rows in statements]
        with self._lock:
            self._healed(lambda connection: _in_one_transaction(connection, changes))

    def discard(self, why: str) -> None:
        """Set the file aside: its rows cannot be believed."""
        with self._lock:
            self._drop_connection()
            if self._in_memory:
                return
            aside = self.file.with_name(self.file.name + ".damaged")
            try:
                self.file.replace(aside)
                self.file.with_name(self.file.name + "-journal").unlink(missing_ok=True)
            except FileNotFoundError:
                pass  # another process was faster
            except OSError as error:  # a read-only folder, or Windows while another process has it open
                self._go_on_in_memory(f"{why}, and cannot be set aside: {error}")
                return
            self._say(f"{self.file} {why}; set aside as {aside.name} and made anew; nothing is lost")

    def _healed(self, action: Callable[[sqlite3.Connection], R]) -> R:
        for _ in range(2):  # damaged, and then the disk is full as well
            try:
                return action(self._open())
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if code in _DAMAGED:
                    self.discard(f"is damaged ({error})")
                elif code in _UNUSABLE:
                    self._go_on_in_memory(str(error))
                else:
                    raise
        return action(self._open())

    def _open(self) -> sqlite3.Connection:
        """The connection of this process to the file that has the name now."""
        here = (os.getpid(), 0 if self._in_memory else _inode(self.file))
        if self._connection is None or here != self._opened:
            self._drop_connection()
            self._connection = self._connect()
            self._opened = (here[0], 0 if self._in_memory else _inode(self.file))
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if not self._in_memory:
            self._make_folder()
        name = ":memory:" if self._in_memory else str(self.file)
        connection = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.text_factory = _text  # damaged text must come out, so that its row_check can fail
        try:
            found = self._found_version(connection)
        except BaseException:
            connection.close()
            raise
        if found == self._version:
            return connection
        connection.close()
        self.discard(f"is of version {found}, this program writes {self._version}")
        return self._connect()

    def _make_folder(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._go_on_in_memory(str(error))

    def _found_version(self, connection: sqlite3.Connection) -> int:
        """The schema's version in the file; a new file gets ours."""
        connection.execute("PRAGMA synchronous = OFF")  # a power cut may damage it: then it is made anew
        if _user_version(connection) == 0:
            create = [(part, [()]) for part in self._schema.split(";") if part.strip()]
            _in_one_transaction(connection, [*create, (f"PRAGMA user_version = {self._version}", [()])])
        return _user_version(connection)

    def _go_on_in_memory(self, why: str) -> None:
        self._drop_connection()
        self._in_memory = True
        self._say(f"{self.file} cannot be used ({why}); this run remembers in memory only")

    def _drop_connection(self) -> None:
        if self._connection is not None and self._opened[0] == os.getpid():
            self._connection.close()
        self._connection = None  # one inherited through fork is left to its owner


def _in_one_transaction(
    connection: sqlite3.Connection, changes: Sequence[tuple[str, Sequence[Sequence[object]]]]
) -> None:
    # IMMEDIATE takes the write lock at once and so waits its turn; a read lock upgraded later may fail without waiting.
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement, rows in changes:
            for values in rows:
                connection.execute(statement, values)
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def _user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except OSError:
        return 0
