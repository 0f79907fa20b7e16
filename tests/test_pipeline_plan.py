"""The plan: what would run, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from cache.receipt import Receipt
from cache.store import Store
from pipeline.plan.changes import changes, miss_reason
from pipeline.plan.plan import State, plan
from pipeline.plan.stage_run import scratch_folder, state_in_words
from pipeline.report import plan_lines
from pipeline.request.recipe import read_recipe
from pipeline.request.resolve import ResolvedInputs
from stages.contract import Member, Source, Weights
from stages.encode.partial_shards import PartialLatents
from stages.encode.stage import item_key
from stages.ingest.stage import audio_params

MEMBERS = tuple(
    Member(name=name, num_bytes=1, digest=f"sha256:{name}")
    for name in ("a.wav", "a.txt", "b.FLAC", "b.txt", "cover.png")
)
SOURCE = Source(path=None, kind="zip", fingerprint="clips", members=MEMBERS)
WEIGHTS = Weights(
    model="tiny-base",
    folder=None,
    config={},
    digests={"autoencoder": "same", "transformer": "dit", "conditioner": "cond", "text_encoder": "text"},
)


def found(**changed) -> ResolvedInputs:
    return ResolvedInputs(**({"source": SOURCE, "weights": WEIGHTS} | changed))


def planned(store, *, last="train", found=found(), **flags):
    return plan(read_recipe("clips.zip", {"model": "tiny-base", "pre_encode": True, **flags}), store, found, last)


@dataclass
class Finished:
    """Puts the receipts of a plan into a store, as if its stages had run."""

    store: Store

    def __call__(self, decided) -> None:
        for run in decided.runs:
            scratch = self.store.scratch(run.stage.name, run.identity)
            scratch.mkdir(parents=True)
            (scratch / "result").write_text("done")
            receipt = Receipt(
                stage=run.stage.name,
                fingerprint=run.fingerprint,
                identity=run.identity,
                version=run.stage.version,
                params=run.record["params"],
                inputs=dict(run.inputs),
                components=dict(run.components),
                finished="2026-01-01T00:00:00+00:00",
            )
            self.store.commit(run.stage.name, run.fingerprint, scratch, receipt)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "artifacts")


@pytest.fixture
def finished(store) -> Finished:
    return Finished(store)


def states(decided) -> list[str]:
    return [run.state.value for run in decided.runs]


def test_an_empty_store_plans_every_stage_as_never_run(store):
    decided = planned(store)
    assert [(run.stage.name, run.state, run.reason) for run in decided.runs] == [
        ("ingest", State.MISS, "never run"),
        ("encode", State.MISS, "never run; 2 of 2 clips to encode"),
        ("train", State.MISS, "never run"),
    ]


def test_planning_writes_nothing(store):
    planned(store)
    assert not store.root.exists()


def test_raw_training_needs_no_encode_stage(store):
    assert [run.stage.name for run in planned(store, pre_encode=False).runs] == ["ingest", "train"]


def test_what_is_finished_is_a_hit(store, finished):
    finished(planned(store))
    assert planned(store).nothing_to_do


def test_a_changed_rank_is_a_miss_of_train_alone_with_the_reason(store, finished):
    finished(planned(store))
    decided = planned(store, rank=32, alpha=16)
    assert states(decided) == ["HIT", "HIT", "MISS"]
    assert decided.runs[-1].reason == "rank 16 -> 32"


def test_other_weights_are_a_miss_of_the_stages_that_read_them(store, finished):
    finished(planned(store))
    other = Weights(model="tiny-base", folder=None, config={}, digests={**WEIGHTS.digests, "autoencoder": "same-l"})
    decided = planned(store, found=found(weights=other))
    assert states(decided) == ["HIT", "MISS", "MISS"]
    assert decided.runs[1].reason == "autoencoder weights same -> same-l; 2 of 2 clips to encode"


def test_clips_that_a_stopped_run_encoded_are_not_counted_as_to_encode(store):
    run = planned(store, last="encode").runs[1]
    audio = audio_params(read_recipe("clips.zip", {"model": "tiny-base"}).ingest_params())
    folder = scratch_folder(run, store)
    folder.mkdir(parents=True)
    key = item_key("sha256:a.wav", 0, audio, run.params, "same")
    PartialLatents(folder).save(key, np.zeros((1, 1), np.float16))
    again = planned(store, last="encode").runs[1]
    assert again.reason == "stopped earlier; continues from there; 1 of 2 clips to encode"


def test_the_reason_is_the_difference_to_the_nearest_earlier_result(store, finished):
    finished(planned(store, rank=4, seed=1, learning_rate=1e-3))
    finished(planned(store, rank=8, alpha=8))
    assert planned(store, rank=8, alpha=8, seed=5).runs[-1].reason == "seed 42 -> 5"


def test_an_evicted_artifact_is_reported_as_evicted():
    record = {"version": 1, "params": {"rank": 4}, "inputs": {}, "components": {}}
    receipt = Receipt(stage="train", fingerprint="f", identity="i", version=1, params={"rank": 4})
    assert miss_reason(record, [receipt]) == "its result was removed"


def test_an_unfinished_run_is_resumed(store, finished):
    decided = planned(store)
    scratch = store.scratch("ingest", decided.runs[0].identity)
    scratch.mkdir(parents=True)
    assert planned(store).runs[0].state is State.MISS
    (scratch / "started").write_text("x")
    assert planned(store).runs[0].state is State.RESUME


def test_more_steps_continue_a_finished_run(store, finished):
    finished(planned(store, number_of_steps=1000))
    run = planned(store, number_of_steps=1500).runs[-1]
    assert (run.state, run.reason) == (State.RESUME, "continues the same run (number_of_steps 1000 -> 1500)")


def test_more_steps_of_a_schedule_that_depends_on_their_number_start_anew_with_the_reason(store, finished):
    finished(planned(store, number_of_steps=1000, schedule="cosine"))
    run = planned(store, number_of_steps=1500, schedule="cosine").runs[-1]
    why = "number_of_steps 1000 -> 1500; trained anew, as every step of a cosine schedule depends on it"
    assert (run.state, run.reason) == (State.MISS, why)


def test_params_added_by_a_new_version_are_explained_by_the_version_alone():
    before = {"version": 1, "params": {"rank": 16}, "inputs": {}, "components": {}}
    now = {"version": 2, "params": {"rank": 8, "schedule": "constant"}, "inputs": {}, "components": {}}
    assert changes(before, now) == ["version 1 -> 2", "rank 16 -> 8"]


def test_fewer_steps_than_a_finished_run_start_anew_with_the_reason(store, finished):
    finished(planned(store, number_of_steps=1000))
    run = planned(store, number_of_steps=500).runs[-1]
    assert (run.state, run.reason) == (State.MISS, "number_of_steps 1000 -> 500")


def test_stages_whose_weights_do_not_exist_yet_have_no_fingerprint_but_a_reason(store):
    decided = planned(store, found=found(weights=None, why_no_weights="made on first use"))
    assert [run.fingerprint is None for run in decided.runs] == [False, True, True]
    assert decided.runs[1].reason == "made on first use"
    assert "made on first use" in plan_lines(decided)[-1]


def test_two_spellings_of_one_request_have_one_fingerprint(store):
    names = [planned(store, base_precision=text).runs[-1].fingerprint for text in ("bf16", "bfloat16")]
    assert names[0] == names[1]


def test_changes_are_reported_by_field_name():
    before = {"version": 1, "params": {"duration": None, "rank": 4}, "inputs": {"ingest": "a"}, "components": {}}
    now = {"version": 2, "params": {"duration": 5.0, "rank": 4}, "inputs": {"ingest": "b"}, "components": {}}
    assert changes(before, now) == ["version 1 -> 2", "duration unset -> 5.0", "ingest changed"]


def test_a_result_from_the_same_inputs_explains_a_miss_better_than_one_that_shares_more_params(store, finished):
    finished(planned(store, number_of_steps=10, seed=1))
    other = Source(path=None, kind="zip", fingerprint="other clips", members=MEMBERS)
    finished(planned(store, found=found(source=other), rank=8, alpha=8))
    told = planned(store, rank=8, alpha=8, number_of_steps=10).runs[-1].reason
    assert told == "alpha 16.0 -> 8.0, rank 16 -> 8, seed 1 -> 42"


def test_a_result_from_the_same_stages_explains_a_miss_better_than_one_that_shares_more_params(store, finished):
    finished(planned(store, pre_encode=False, rank=8, seed=5))
    finished(planned(store, rank=16, seed=1))
    other = Source(path=None, kind="zip", fingerprint="other clips", members=MEMBERS)
    told = planned(store, found=found(source=other), rank=8, seed=5).runs[-1].reason
    assert told == "alpha 16.0 -> 8.0, rank 16 -> 8, seed 1 -> 5, encode changed"


def test_inputs_that_only_one_side_reads_are_not_reported(store, finished):
    finished(planned(store))
    assert planned(store, pre_encode=False).runs[-1].reason == "pre_encode True -> False"


def test_a_shorter_run_does_not_touch_a_longer_interrupted_one(store, finished):
    longer = planned(store, number_of_steps=1000).runs[-1]
    scratch = store.scratch("train", longer.identity)
    (scratch / "checkpoints" / "step-00000600").mkdir(parents=True)
    (scratch / "checkpoints" / "step-00000600" / "tensors").write_text("x")
    finished(planned(store, last="encode"))
    assert planned(store, number_of_steps=1000).runs[-1].state is State.RESUME
    shorter = planned(store, number_of_steps=100).runs[-1]
    assert shorter.state is State.MISS
    assert scratch_folder(longer, store) == scratch
    assert scratch_folder(shorter, store) != scratch


def test_the_fingerprint_of_raw_training_includes_the_weights_it_reads_itself(store):
    run = planned(store, pre_encode=False).runs[-1]
    assert set(run.components) == {"transformer", "conditioner", "autoencoder", "text_encoder"}
    for name in run.components:
        other = Weights(model="tiny-base", folder=None, config={}, digests={**WEIGHTS.digests, name: "other"})
        assert planned(store, pre_encode=False, found=found(weights=other)).runs[-1].fingerprint != run.fingerprint


def test_another_adapter_to_start_from_is_another_training(store):
    names = {planned(store, found=found(lora_digest=digest)).runs[-1].fingerprint for digest in (None, "a", "b")}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("state", "changed", "word"),
    [
        (State.HIT, False, "done"),
        (State.RESUME, False, "goes on"),
        (State.MISS, True, "changed"),
        (State.MISS, False, "new"),
    ],
)
def test_people_read_words_where_programs_read_states(state, changed, word):
    assert state_in_words(state, changed=changed) == word
