"""Messages of evict and gc, and the question before trainings are removed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cache import run_metadata
from pipeline.cli import app
from pipeline.errors import NotConfirmed
from pipeline.maintenance.confirmation import confirm_removal
from pipeline.maintenance.gc import Selection, evict, gc
from pipeline.store_option import with_store
from stages.plural import size
from tests.small_stores import StoreBuilder, discard_message, interrupt_run, prepared


@pytest.fixture
def builder(tmp_path) -> StoreBuilder:
    return StoreBuilder(tmp_path / "artifacts")


def typed(builder: StoreBuilder, *words: str):
    """A command about this store, as a person types it."""
    return CliRunner().invoke(app, [*words, "--store", str(builder.store.root)])


YOUNG = "2999-01-01T00:00:00+00:00"


def test_nothing_old_enough_is_reported_and_not_an_error(builder):
    builder.ingest((0,), finished=YOUNG)
    done = typed(builder, "evict", "--older-than", "30d")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "nothing was finished longer ago than 30d",
        "0 files and folders, 0 B freed",
    ]


def test_nothing_old_enough_is_reported_with_the_criteria_given(builder):
    builder.ingest((0,), finished=YOUNG)
    done = typed(builder, "evict", "--older-than", "12h", "--stage", "train", "--model", "tiny-base")
    assert done.stdout.startswith("nothing of stage train for tiny-base was finished longer ago than 12h\n")


@pytest.mark.parametrize("words", [["abcd", "--older-than", "30d"], ["--model", "medium-base"]])
def test_an_unknown_name_or_model_is_an_error(builder, words):
    builder.ingest((0,), finished=YOUNG)
    done = typed(builder, "evict", *words)
    assert (done.exit_code, f"nothing in {builder.store.root} matches" in done.stderr) == (1, True)


def add_download(builder: StoreBuilder) -> None:
    """A downloaded archive, which belongs to no artifact."""
    folder = builder.store.shared / "sources"
    folder.mkdir(parents=True)
    (folder / f"{0:032x}.zip").write_bytes(bytes(1000))


def test_gc_removes_the_base_weights_that_earlier_versions_wrote_into_the_store(builder):
    folder = builder.store.shared / "weights" / "tiny-base-v1"
    (folder / "t5gemma-b-b-ul2").mkdir(parents=True)
    for name in ("model.safetensors", "t5gemma-b-b-ul2/config.json"):
        (folder / name).write_bytes(bytes(1000))
    done = typed(builder, "gc")
    assert "shared/weights/tiny-base-v1/model.safetensors" in done.stdout
    assert "2.0 kB freed" in done.stdout
    assert not (builder.store.shared / "weights").exists()


def test_a_size_limit_that_downloads_alone_exceed_does_not_mention_trainings(builder):
    add_download(builder)
    done = typed(builder, "gc", "--max-bytes", "1")
    assert done.exit_code == 1
    assert "1.0 kB are left, more than the 1 B allowed: all of it is downloaded archives" in done.stderr
    assert "training" not in done.stderr


def test_a_size_limit_that_cannot_be_met_says_how_much_trainings_need_and_how_much_is_downloads(builder):
    add_download(builder)
    builder.train((0,))
    left = builder.store.sizes().total - sum(map(len, prepared((0,)).values()))
    done = typed(builder, "gc", "--max-bytes", "1")
    assert f"{size(left - 1000)} are needed by finished trainings, 1.0 kB are downloaded archives" in done.stderr
    assert f"`sa3-trainer evict --older-than 30d --store {builder.store.root}` removes old trainings" in done.stderr


def test_what_an_unfinished_run_wrote_counts_as_needed_by_it(builder):
    add_download(builder)
    interrupt_run(builder, "train", (0,))
    left = builder.store.sizes().total
    done = typed(builder, "gc", "--max-bytes", "1", "--dry-run")
    assert f"{size(left - 1000)} are needed by unfinished runs, 1.0 kB are downloaded archives" in done.stderr
    assert f"`sa3-trainer evict NAME --store {builder.store.root}` removes an unfinished run" in done.stderr


def test_files_kept_for_an_unfinished_run_come_with_the_command_that_removes_it(builder):
    interrupt_run(builder, "encode", (0, 1))
    decision, _ = gc(builder.store, discard_message, dry_run=True, prepared=True)
    (run,) = run_metadata.unfinished_runs(builder.store)
    assert len(decision.kept) == 2
    command = f"sa3-trainer evict {run.name[:18]} --store {builder.store.root}"
    assert all(line.endswith(f"`{command}` removes that run") for line in decision.kept)


def test_advice_names_the_store_unless_it_is_the_default_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "`sa3-trainer gc` and `sa3-trainer evict NAME`, `sa3-trainer status --store x`, `sa3-trainer run DATA`"
    assert with_store(line, Path("artifacts")) == with_store(line, tmp_path / "artifacts") == line
    assert with_store(line, Path("my store")) == (
        "`sa3-trainer gc --store 'my store'` and `sa3-trainer evict NAME --store 'my store'`, "
        "`sa3-trainer status --store x`, `sa3-trainer run DATA`"
    )


def test_removing_prepared_audio_warns_that_an_edited_caption_decodes_it_again(builder):
    builder.ingest((0,))
    done = typed(builder, "gc", "--prepared")
    assert "the next ingest of these clips decodes them again, also where only a caption was edited" in done.stdout


def test_a_gc_that_removes_no_prepared_audio_does_not_mention_decoding(builder):
    builder.ingest((0,))
    assert "decodes" not in typed(builder, "gc").stdout


def test_one_removal_is_counted_in_the_singular(builder):
    interrupt_run(builder, "train", (0,))
    (run,) = run_metadata.unfinished_runs(builder.store)
    assert typed(builder, "evict", run.name[:18], "--yes").stdout.splitlines()[-1].startswith("1 file or folder, ")


@pytest.fixture
def answered(monkeypatch):
    """Answers on a terminal, in order; returns what was asked so far."""

    def terminal(*answers: str) -> None:
        stdin = io.StringIO("".join(f"{one}\n" for one in answers))
        stdin.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    return terminal


def removal_of(builder: StoreBuilder, clips: tuple[int, ...]):
    name = builder.train(clips)
    return lambda: evict(builder.store, Selection(names=[name]), discard_message, dry_run=True)


@pytest.mark.parametrize("answer", ["", "n", "no", "maybe"])
def test_a_finished_training_is_removed_only_after_a_yes(builder, answered, answer, capsys):
    answered(answer)
    with pytest.raises(NotConfirmed, match=r"^nothing was removed\.$"):
        confirm_removal(removal_of(builder, (0,)), yes=False)
    assert "this removes 1 training:\n  train " in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["y", "Y", "yes"])
def test_a_yes_is_a_yes(builder, answered, answer, capsys):
    answered(answer)
    confirm_removal(removal_of(builder, (0,)), yes=False)
    assert "this removes 1 training:\n  train " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["evict", "--stage", "train"], ["evict", "--older-than", "1d"]])
def test_without_a_terminal_trainings_are_removed_with_yes_alone(builder, words):
    builder.train((0,))
    refused = typed(builder, *words)
    assert (refused.exit_code, "add --yes" in refused.stderr, "train" in builder.names()) == (1, True, True)
    assert typed(builder, *words, "--dry-run").exit_code == 0
    assert typed(builder, *words, "--yes").exit_code == 0
    assert "train" not in builder.names()


@pytest.mark.parametrize("words", [["gc", "--older-than", "0d"], ["evict", "train-"]])
def test_a_stopped_training_is_asked_for_too(builder, words):
    interrupt_run(builder, "train", (0,))
    (run,) = run_metadata.unfinished_runs(builder.store)
    words = [run.short_name if word == "train-" else word for word in words]
    assert typed(builder, *words).exit_code == 1
    assert run_metadata.unfinished_runs(builder.store)
    assert typed(builder, *words, "--yes").exit_code == 0
    assert not run_metadata.unfinished_runs(builder.store)


@pytest.mark.parametrize("words", [["evict", "--stage", "encode"], ["gc", "--prepared"]])
def test_what_can_be_made_again_is_removed_without_a_question(builder, words):
    builder.encode((0,))
    assert typed(builder, *words).exit_code == 0


def test_make_clean_touches_no_adapter_and_no_store():
    makefile = Path(__file__).parents[1] / "Makefile"
    (command,) = [line for line in makefile.read_text("utf-8").splitlines() if line.startswith("\trm ")]
    assert not {"output", "artifacts", "artifacts/scratch"} & set(command.split())
