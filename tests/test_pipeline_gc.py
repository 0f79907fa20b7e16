"""evict and gc: a dry run lists what they remove, and whatever the history, what a kept run references is kept."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cache import run_metadata
from cache.errors import SharedFileListDamaged
from cache.shared_files import FILE_NAME, iter_shared_files, missing_shared_files, write_shared_files
from cache.store import Store
from pipeline.cli import app
from pipeline.errors import NothingToEvict, RecipeError, StillNeeded, StoreNotFound
from pipeline.maintenance.gc import Selection, evict, existing_store, gc
from pipeline.maintenance.gc_policy import days_since
from pipeline.maintenance.quantities import bytes_of, days_of
from tests.small_stores import StoreBuilder, discard_message, interrupt_run, prepared, shards


@pytest.fixture
def builder(tmp_path) -> StoreBuilder:
    return StoreBuilder(tmp_path / "artifacts")


def chosen(**fields) -> Selection:
    return Selection(**fields)


CLIPS = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(tuple)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["ingest", "encode", "train"]), CLIPS),
    st.tuples(st.sampled_from(["stop ingest", "stop encode", "stop train"]), CLIPS),
    st.tuples(st.just("evict"), st.integers(0, 30)),
    st.tuples(st.just("evict stage"), st.sampled_from(["ingest", "encode", "train"])),
    st.tuples(st.just("gc"), st.sampled_from([{}, {"older_than": "0d"}, {"prepared": True}, {"max_bytes": "300"}])),
)


def step(builder: StoreBuilder, kind: str, what) -> None:
    """One thing that happens to a store."""
    if kind in ("ingest", "encode", "train"):
        getattr(builder, kind)(what)
    elif kind.startswith("stop "):
        interrupt_run(builder, kind.removeprefix("stop "), what)
    elif kind == "gc":
        gc(builder.store, discard_message, dry_run=False, **what)
    else:
        receipts = builder.store.receipts()
        if kind == "evict stage":
            wanted = {"stage": what}
        else:
            wanted = {"names": [receipts[what % len(receipts)].fingerprint if receipts else "f" * 64]}
        with suppress(StillNeeded, NothingToEvict):
            evict(builder.store, chosen(**wanted), discard_message, dry_run=False)


@settings(max_examples=60, deadline=None)
@given(history=st.lists(STEPS, min_size=1, max_size=12))
def test_whatever_the_history_everything_a_kept_run_references_is_kept(history):
    with tempfile.TemporaryDirectory() as folder:
        builder, prepared_dropped = StoreBuilder(Path(folder)), False
        for kind, what in history:
            step(builder, kind, what)
            prepared_dropped |= kind == "gc" and ("prepared" in what or "max_bytes" in what)
            check_kept_runs(builder.store, prepared_dropped)


def check_kept_runs(store: Store, prepared_dropped: bool) -> None:
    """Inputs of every kept run are there, and every shared file that a kept artifact names."""
    receipts = {receipt.fingerprint: receipt for receipt in store.receipts()}
    readers = [receipt.inputs for receipt in receipts.values()] + [
        run.inputs for run in run_metadata.unfinished_runs(store)
    ]
    for inputs in readers:
        assert all(name in receipts for stage, name in inputs.items() if stage != "source")
    for receipt in receipts.values():
        assert store.differences(receipt) == []
        gone = missing_shared_files(store.directory(receipt.stage, receipt.fingerprint), store.shared)
        assert not gone or (prepared_dropped and receipt.stage == "ingest")


@settings(max_examples=30, deadline=None)
@given(history=st.lists(STEPS, min_size=1, max_size=8))
def test_a_dry_run_lists_exactly_what_would_be_removed_and_changes_nothing(history):
    with tempfile.TemporaryDirectory() as folder:
        builder = StoreBuilder(Path(folder))
        for kind, what in history:
            step(builder, kind, what)
        before = builder.store.sizes()
        shown, _ = gc(builder.store, discard_message, dry_run=True, older_than="0d", prepared=True)
        assert builder.store.sizes() == before
        done, _ = gc(builder.store, discard_message, dry_run=False, older_than="0d", prepared=True)
        assert done.removals() == shown.removals()
        assert builder.store.sizes().total == before.total - shown.num_bytes


def test_gc_removes_every_unreferenced_shared_file_once_nothing_is_unfinished(builder):
    builder.train((0, 1))
    orphan = builder.encode((2, 3))
    builder.store.drop("encode", orphan)
    gc(builder.store, discard_message, dry_run=False, older_than="0d")
    assert builder.shared() == set(prepared((0, 1))) | set(shards((0, 1)))
    assert builder.names() == ["encode", "ingest", "train"]


def test_unreferenced_shards_are_kept_while_an_unfinished_encoding_may_resume_from_them(builder):
    interrupt_run(builder, "encode", (0, 1))
    decision, _ = gc(builder.store, discard_message, dry_run=False)
    assert set(shards((0, 1))) <= builder.shared()
    assert "kept for unfinished encode-" in decision.kept[0]
    gc(builder.store, discard_message, dry_run=False, older_than="0d")
    assert not set(shards((0, 1))) & builder.shared()
    assert not list((builder.store.root / "scratch").iterdir())


def test_an_unfinished_run_is_evicted_by_its_name_and_frees_what_it_read(builder):
    interrupt_run(builder, "train", (0,))
    (run,) = run_metadata.unfinished_runs(builder.store)
    decision = evict(builder.store, chosen(names=[run.name[:14]]), discard_message, dry_run=False)
    assert [name for name, _, _ in decision.unfinished] == [run.name]
    assert run_metadata.unfinished_runs(builder.store) == run_metadata.orphans(builder.store) == []
    (encode,) = builder.store.receipts("encode")
    evict(builder.store, chosen(names=[encode.fingerprint]), discard_message, dry_run=False)
    assert builder.names() == ["ingest"]


def test_an_unfinished_run_that_a_process_works_on_is_never_removed(builder):
    interrupt_run(builder, "train", (0,))
    (run,) = run_metadata.unfinished_runs(builder.store)
    with builder.store.lock("train", run.identity):
        gc(builder.store, discard_message, dry_run=False, older_than="0d")
        assert builder.names() == ["encode", "ingest"]
        assert [one.name for one in run_metadata.unfinished_runs(builder.store)] == [run.name]


def test_evicting_what_a_training_needs_is_refused_with_the_training_listed(builder):
    train = builder.train((0, 1))
    (encode,) = [receipt.fingerprint for receipt in builder.store.receipts("encode")]
    with pytest.raises(StillNeeded, match=f"train {train[:12]} needs it"):
        evict(builder.store, chosen(names=[encode[:8]]), discard_message, dry_run=False)
    assert builder.names() == ["encode", "ingest", "train"]


def test_evicting_a_training_with_what_it_needs_removes_the_shards_only_they_reference(builder):
    train, other = builder.train((0, 1, 2)), builder.train((2, 3))
    inputs = [receipt.fingerprint for receipt in builder.store.receipts() if receipt.fingerprint not in (train, other)]
    decision = evict(builder.store, chosen(names=[train, *inputs]), discard_message, dry_run=False)
    assert builder.names() == ["encode", "ingest", "train"]
    assert {path for path in builder.shared() if path.startswith("latents")} == {
        path for path in shards((2, 3)) if path.startswith("latents")
    }
    assert any("is kept" in line and f"train {other[:12]}" in line for line in decision.kept)


def test_age_and_model_are_combined(builder):
    builder.train((0,), model="medium-base")
    builder.train((0,), model="tiny-base", finished="2999-01-01T00:00:00+00:00")
    young = builder.train((1,), model="medium-base", finished="2999-01-01T00:00:00+00:00")
    evict(builder.store, chosen(stage="train", older_than="30d", model="medium-base"), discard_message, dry_run=False)
    left = [(receipt.params["model"], receipt.finished[:4]) for receipt in builder.store.receipts("train")]
    assert sorted(left) == [("medium-base", "2999"), ("tiny-base", "2999")]
    assert builder.store.find("train", young)


def test_a_size_limit_removes_prepared_audio_then_unread_encodings_and_never_a_training(builder):
    builder.train((0, 1))
    builder.encode((2, 3))
    total = builder.store.sizes().total
    decision, met = gc(builder.store, discard_message, dry_run=True, max_bytes=str(total - 5))
    assert met
    assert {one.path.rpartition("/")[0][:15] for one in decision.removals()} == {"shared/prepared"}
    decision, met = gc(builder.store, discard_message, dry_run=False, max_bytes="1")
    assert not met
    assert builder.names() == ["encode", "ingest", "train"]
    assert {path for path in builder.shared() if path.startswith("latents")} == {
        path for path in shards((0, 1)) if path.startswith("latents")
    }


def test_no_criterion_or_one_that_matches_nothing_is_refused(builder):
    builder.ingest((0,))
    with pytest.raises(RecipeError, match="name an artifact"):
        evict(builder.store, chosen(), discard_message, dry_run=False)
    with pytest.raises(RecipeError, match="at least its first four digits"):
        evict(builder.store, chosen(names=["*"]), discard_message, dry_run=False)
    with pytest.raises(NothingToEvict, match="sa3-trainer status"):
        evict(builder.store, chosen(names=["train 0000"]), discard_message, dry_run=False)


def test_ages_and_sizes_are_parsed_or_refused():
    assert [days_of(text) for text in ("12h", "30d", "2w", "7")] == [0.5, 30, 14, 7]
    assert [bytes_of(text) for text in ("50", "1k", "1.5 MiB", "2G")] == [50, 1024, 1.5 * 2**20, 2**31]
    for text in ("", "soon", "-1d"):
        with pytest.raises(RecipeError):
            days_of(text)
        with pytest.raises(RecipeError):
            bytes_of(text)
    assert days_since("nonsense") == 0


def test_the_list_of_shared_files_is_read_back_and_damage_to_it_is_an_error(tmp_path):
    write_shared_files(tmp_path, {"latents/b": 2, "latents/a": 1})
    assert list(iter_shared_files(tmp_path)) == [("latents/a", 1), ("latents/b", 2)]
    assert missing_shared_files(tmp_path, tmp_path) == ["latents/a", "latents/b"]
    (tmp_path / FILE_NAME).write_text("1\tlatents/a\n2 latents/b\n")
    with pytest.raises(SharedFileListDamaged, match="verify --repair"):
        list(iter_shared_files(tmp_path))


def test_the_idle_time_of_an_unfinished_run_counts_from_its_last_write(builder):
    scratch = builder.start_run("encode", {}, {}, "ab" * 32)
    assert 0 <= run_metadata.idle_seconds(builder.store, scratch.name) < 60
    stamp = time.time() - 5000
    for path in (scratch / "manifest", scratch):
        import os

        os.utime(path, (stamp, stamp))
    assert 4990 < run_metadata.idle_seconds(builder.store, scratch.name) < 5060


def test_metadata_left_by_a_kill_right_after_the_commit_is_removed_and_that_of_a_run_in_progress_is_not(builder):
    scratch = builder.start_run("encode", {}, {}, "ab" * 32)
    run_metadata.remove_orphan(builder.store, scratch.name)
    assert scratch.with_name(f"{scratch.name}.json").exists()
    (scratch / "manifest").unlink()
    scratch.rmdir()
    run_metadata.remove_orphan(builder.store, scratch.name)
    assert not scratch.with_name(f"{scratch.name}.json").exists()


def test_an_unknown_stage_is_a_wrong_value(builder):
    builder.ingest((0,))
    with pytest.raises(RecipeError, match="must be one of ingest, encode, train; got 'bake'"):
        evict(builder.store, chosen(stage="bake"), discard_message, dry_run=False)


def test_a_store_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(StoreNotFound, match="there is no folder"):
        existing_store(tmp_path / "none")


def test_a_size_limit_that_cannot_be_met_still_gives_one_json_document(builder):
    builder.train((0, 1))
    call = ["gc", "--max-bytes", "1", "--dry-run", "--json", "--store", str(builder.store.root)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["dry_run"] is True and " are left, more than the " in done.stderr
