"""A damaged database is renamed, reported and recreated; its content may be lost without harm."""

from __future__ import annotations

import os
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.files.disposable_sqlite import DisposableDatabase

SCHEMA = "CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY)"
ADD = "INSERT OR REPLACE INTO words VALUES (?)"
ALL = "SELECT word FROM words ORDER BY word"


class Messages(list):
    def __call__(self, line):
        self.append(line)


@pytest.fixture
def messages():
    return Messages()


def database_at(path, messages, version=1):
    return DisposableDatabase(path, SCHEMA, version, messages)


def test_stored_rows_are_found_by_the_next_process(tmp_path, messages):
    database_at(tmp_path / "l.sqlite", messages).execute([(ADD, [("rain",), ("sea",)])])
    assert database_at(tmp_path / "l.sqlite", messages).query(ALL) == [("rain",), ("sea",)]
    assert messages == []


@pytest.mark.parametrize(
    "content", [b"", b"not a database, but long enough to be looked at" * 200, b"SQLite format 3\0"]
)
def test_a_damaged_file_is_recreated_with_a_message(tmp_path, messages, content):
    file = tmp_path / "l.sqlite"
    file.write_bytes(content)
    database = database_at(file, messages)
    database.execute([(ADD, [("rain",)])])
    assert database.query(ALL) == [("rain",)]
    if content:
        assert (
            len(messages) == 1 and "l.sqlite is damaged" in messages[0] and "renamed to l.sqlite.damaged" in messages[0]
        )
        assert (tmp_path / "l.sqlite.damaged").read_bytes() == content


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_flipped_the_database_works_and_never_raises(tmp_path, data):
    file, messages = tmp_path / "l.sqlite", Messages()
    file.unlink(missing_ok=True)
    database_at(file, messages).execute([(ADD, [(f"word {n}",) for n in range(300)])])
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)

    database = database_at(file, messages)
    database.query(ALL)
    database.execute([(ADD, [("after",)])])
    assert ("after",) in database.query(ALL)


def test_a_file_of_another_version_is_renamed(tmp_path, messages):
    database_at(tmp_path / "l.sqlite", messages, version=1).execute([(ADD, [("rain",)])])
    newer = database_at(tmp_path / "l.sqlite", messages, version=2)
    assert newer.query(ALL) == []
    assert "has version 1, this program writes 2" in messages[0]


def test_damage_while_it_is_open_is_repaired(tmp_path, messages):
    database = database_at(tmp_path / "l.sqlite", messages)
    database.execute([(ADD, [("rain",)])])
    (tmp_path / "l.sqlite").write_bytes(b"x" * 8192)
    assert database.query(ALL) == []
    assert len(messages) == 1


def test_a_file_recreated_by_another_process_is_noticed(tmp_path, messages):
    first, second = database_at(tmp_path / "l.sqlite", messages), database_at(tmp_path / "l.sqlite", messages)
    first.execute([(ADD, [("rain",)])])
    second.discard("was looked at")
    second.execute([(ADD, [("sea",)])])
    assert first.query(ALL) == [("sea",)]


def test_a_deleted_file_is_recreated(tmp_path, messages):
    database = database_at(tmp_path / "l.sqlite", messages)
    database.execute([(ADD, [("rain",)])])
    (tmp_path / "l.sqlite").unlink()
    assert database.query(ALL) == []
    database.execute([(ADD, [("sea",)])])
    assert database.query(ALL) == [("sea",)]


def test_a_file_that_cannot_be_used_is_replaced_by_memory_with_a_message(tmp_path, messages):
    (tmp_path / "l.sqlite").mkdir()
    database = database_at(tmp_path / "l.sqlite", messages)
    database.execute([(ADD, [("rain",)])])
    assert database.query(ALL) == [("rain",)]
    assert len(messages) == 1 and "in memory only" in messages[0]


def test_a_damaged_file_that_cannot_be_renamed_is_replaced_by_memory_with_a_message(tmp_path, messages):
    (tmp_path / "l.sqlite").write_bytes(b"noise" * 2000)
    (tmp_path / "l.sqlite.damaged").mkdir()  # in the way
    database = database_at(tmp_path / "l.sqlite", messages)
    database.execute([(ADD, [("rain",)])])
    assert database.query(ALL) == [("rain",)]
    assert len(messages) == 1 and "cannot be renamed" in messages[0] and "in memory only" in messages[0]


def test_changes_are_made_all_or_none(tmp_path, messages):
    database = database_at(tmp_path / "l.sqlite", messages)
    with pytest.raises(sqlite3.IntegrityError):
        database.execute([("INSERT INTO words VALUES (?)", [("rain",), ("rain",)])])
    assert database.query(ALL) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own_connection(tmp_path, messages):
    database = database_at(tmp_path / "l.sqlite", messages)
    database.execute([(ADD, [("parent",)])])
    pid = os.fork()
    if pid == 0:
        database.execute([(ADD, [("child",)])])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert database.query(ALL) == [("child",), ("parent",)]


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, messages):
    before = os.umask(0o002)
    try:
        database_at(tmp_path / "l.sqlite", messages).execute([(ADD, [("rain",)])])
    finally:
        os.umask(before)
    assert (tmp_path / "l.sqlite").stat().st_mode & 0o777 == 0o664
