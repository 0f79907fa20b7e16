"""What --json prints keeps to docs/documents.schema.json, and no flag takes --json for its value."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from pipeline.cli import app
from tests.small_datasets import clips, folder

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "docs" / "documents.schema.json").read_text(encoding="utf-8"))
TINY = ("--model", "tiny-base", "--workers", "1")


def check(kind: str, document: dict) -> None:
    """The document is as its schema says, and the schema knows all of its fields."""
    Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}).validate(document)
    if kind != "event":
        assert set(document) <= set(SCHEMA["$defs"][kind]["properties"])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of clips, and a store with its ingest."""
    root = tmp_path_factory.mktemp("documents")
    folder(root / "clips", clips("a", "b"))
    assert document(root, "run", "ingest", root / "clips", *TINY)["files"] == []
    return root


def document(root: Path, kind: str, command: str, *words: object, code: int = 0) -> dict:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [command, *map(str, words), "--store", str(root / "store"), "--json"])
    assert done.exit_code == code, done.output
    found = json.loads(done.stdout)
    check(kind, found)
    return found


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_documents_of_commands_over_data(place):
    planned = document(place, "plan", "plan", place / "clips", *TINY)
    assert [one["stage"] for one in planned["stages"]] == ["ingest", "train"]
    assert document(place, "explain", "explain", place / "clips", *TINY)["findings"]


@pytest.mark.parametrize(
    ("command", "kind"), [("status", "status"), ("verify", "verify"), ("gc", "removal"), ("doctor", "doctor")]
)
def test_documents_of_commands_over_a_store(place, command, kind):
    document(place, kind, command)


def test_documents_of_removals(place):
    assert document(place, "removal", "evict", "--stage", "ingest", "--dry-run")["removed"]


def test_documents_of_failures(place):
    document(place, "error", "run", place / "none.zip", code=2)
    wrong = document(place, "error", "run", place / "clips", "--rank", "0", code=2)
    assert wrong["detail"][0]["loc"][-1] == "rank"
    document(place, "error", "evict", "--no-such-flag", code=2)
    document(place, "error", "evict", "0123456789ab", code=1)


def test_events_of_a_run(place):
    words = ["ingest", str(place / "clips"), *TINY, "--store", str(place / "store"), "--progress", "json"]
    events = [json.loads(line) for line in CliRunner().invoke(app, words).stderr.splitlines()]
    for event in events:
        check("event", event)
    assert (events[0]["event"], events[-1]) == ("start", {**events[-1], "event": "end", "exit_code": 0})
    failed = CliRunner().invoke(app, ["ingest", "none.zip", "--progress", "json"])
    error, end = [json.loads(line) for line in failed.stderr.splitlines()][-2:]
    check("event", error)
    assert (error["event"], error["exit_code"], end["exit_code"]) == ("error", 2, 2)


def test_every_event_and_every_document_is_described():
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    events = SCHEMA["$defs"]["event"]["properties"]["event"]["enum"]
    assert [name for name in events if f"\n| `{name}` |" not in page] == []
    kinds = [name for name, one in SCHEMA["$defs"].items() if one.get("$ref") == "#/$defs/document"]
    described = set(re.findall(r"^\| [^|]+ \| `(\w+)` \|", page, flags=re.MULTILINE))
    assert [name for name in kinds if name not in described] == []


@pytest.mark.parametrize(
    "words",
    [
        ("run", "x.zip", "--name", "--json"),
        ("status", "--store", "--json"),
        ("generate", "a sound", "--adapter", "--json"),
        ("evict", "--stage", "--dry-run", "--json"),
        ("run", "x.zip", "--caption-template", "--pre-encode=on", "--json"),
    ],
)
def test_a_flag_without_its_value_does_not_take_the_next_flag(words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    check("error", json.loads(done.stdout))
    assert "needs a value" in done.stderr


def test_a_value_that_looks_like_a_flag_can_be_given_all_the_same():
    done = CliRunner().invoke(app, ["plan", "none.zip", "--name=--json"])
    assert "needs a value" not in done.output and done.exit_code == 2
