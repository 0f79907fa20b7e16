"""An sqlite file that may be deleted at any time: its content can be recomputed. Light: standard library only.

The cache of digests and the registry of shards are built on it. It uses a rollback journal instead of a write-ahead
log, which would need memory shared between processes: so it works on network folders, and is a single file.
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
"""SQLITE_ERROR: the tables are not the expected ones. An error message that cannot be decoded counts as one too."""
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
    """Issues a RuntimeWarning: the default for messages."""
    warnings.warn(line, RuntimeWarning, stacklevel=2)


def row_checksum(*fields: object) -> int:
    """crc32 of a row's fields, stored with the row: sqlite itself does not detect a flipped bit inside a value."""
    return zlib.crc32(repr(fields).encode("utf-8", "surrogatepass"))


class DisposableDatabase:
    """Tables in one sqlite file, shared by processes and threads, and recreated when damaged.

    A damaged file, or one of another version, is renamed to `<name>.damaged`. A file that cannot be used (read-only,
    disk full, locked for long) is replaced by a database in memory for this process. Both give a message.

    Args:
        schema: CREATE statements, separated by semicolons.
        say: receives the messages.
    """

    def __init__(self, file: Path, schema: str, version: int, say: Callable[[str], None] = warn) -> None:
        self.file = file
        self._schema, self._version, self._say = schema, version, say
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] = (0, 0)
        self._in_memory = False

    def query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT; none, and no file is created, when there is no file yet."""
        with self._lock:
            if not self._in_memory and not self.file.exists():
                return []
            return self._recovering(lambda connection: connection.execute(statement, values).fetchall())

    def execute(self, statements: Iterable[tuple[str, Sequence[Sequence[object]]]]) -> None:
        """Runs each statement with each of its rows of values, all in one transaction."""
        changes = [(statement, list(rows)) for statement, rows in statements]
        with self._lock:
            self._recovering(lambda connection: _in_one_transaction(connection, changes))

    def discard(self, why: str) -> None:
        """Renames the file to `<name>.damaged`: its rows cannot be trusted."""
        with self._lock:
            self._drop_connection()
            if self._in_memory:
                return
            damaged = self.file.with_name(self.file.name + ".damaged")
            try:
                self.file.replace(damaged)
                self.file.with_name(self.file.name + "-journal").unlink(missing_ok=True)
            except FileNotFoundError:
                pass  # another process was faster
            except OSError as error:  # a read-only folder, or Windows while another process has it open
                self._switch_to_memory(f"{why}, and cannot be renamed: {error}")
                return
            self._say(f"{self.file} {why}; renamed to {damaged.name} and recreated; nothing is lost")

    def _recovering(self, action: Callable[[sqlite3.Connection], R]) -> R:
        """The result of an action, tried again after a damaged or unusable file was replaced."""
        for _ in range(2):  # the file may be damaged, and the disk full when it is recreated
            try:
                return action(self._open())
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if code in _DAMAGED:
                    self.discard(f"is damaged ({error})")
                elif code in _UNUSABLE:
                    self._switch_to_memory(str(error))
                else:
                    raise
        return action(self._open())

    def _open(self) -> sqlite3.Connection:
        """The connection of this process to the file that has the name now: it may have been replaced since."""
        here = (os.getpid(), 0 if self._in_memory else _inode(self.file))
        if self._connection is None or here != self._opened:
            self._drop_connection()
            self._connection = self._connect()
            self._opened = (here[0], 0 if self._in_memory else _inode(self.file))
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if not self._in_memory:
            self._make_file()
        name = ":memory:" if self._in_memory else str(self.file)
        connection = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.text_factory = _text  # damaged text must be readable, so that its row_checksum can fail
        try:
            found = self._found_version(connection)
        except BaseException:
            connection.close()
            raise
        if found == self._version:
            return connection
        connection.close()
        self.discard(f"has version {found}, this program writes {self._version}")
        return self._connect()

    def _make_file(self) -> None:
        """Make an empty database, with the permissions that the umask leaves: sqlite's own keeps out the group."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(self.file):
                self.file.touch()
        except OSError as error:
            self._switch_to_memory(str(error))

    def _found_version(self, connection: sqlite3.Connection) -> int:
        """The version of the schema in the file; creates the tables of a new file."""
        connection.execute("PRAGMA synchronous = OFF")  # a power failure may damage it: then it is recreated
        if _user_version(connection) == 0:
            create = [(part, [()]) for part in self._schema.split(";") if part.strip()]
            _in_one_transaction(connection, [*create, (f"PRAGMA user_version = {self._version}", [()])])
        return _user_version(connection)

    def _switch_to_memory(self, why: str) -> None:
        self._drop_connection()
        self._in_memory = True
        self._say(f"{self.file} cannot be used ({why}); this run caches in memory only")

    def _drop_connection(self) -> None:
        if self._connection is not None and self._opened[0] == os.getpid():
            self._connection.close()
        self._connection = None  # a connection inherited through fork belongs to the parent


def _in_one_transaction(
    connection: sqlite3.Connection, changes: Sequence[tuple[str, Sequence[Sequence[object]]]]
) -> None:
    # IMMEDIATE waits for the write lock at once; upgrading a read lock later may fail without waiting.
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
