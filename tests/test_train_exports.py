"""Adapters that leave a training on its way are whole adapters, and change nothing of its result."""

from __future__ import annotations

import json

import pytest

from cache.errors import WriteFailed
from stages.adapters import adapter_file
from stages.contract import Resources
from stages.errors import Stopped
from stages.train import loop
from stages.train.forecast.disk_space import exports_due
from stages.train.record import checkpoint
from tests.small_training import Bench


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path)


def exporting(bench: Bench, every: int) -> Bench:
    bench.resources = Resources(device="cpu", save_every=every)
    return bench


def read(bench: Bench, suffix: str) -> adapter_file.AdapterFile:
    file = bench.root / f"copy{suffix}"
    file.write_bytes(bench.handed_out[suffix])
    return adapter_file.read(file)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_exports_on_the_way_change_no_byte_of_the_result(bench, ema_decay):
    without, with_exports = bench.at("without"), exporting(bench.at("with"), 2)
    without.train(number_of_steps=5, ema_decay=ema_decay)
    with_exports.train(number_of_steps=5, ema_decay=ema_decay)
    assert with_exports.results() == without.results()
    assert {file.name for file in with_exports.directory.iterdir()} == {
        file.name for file in without.directory.iterdir()
    }


def test_an_export_holds_the_adapter_that_a_training_of_so_many_steps_has(bench):
    exporting(bench, 2).train(number_of_steps=5)
    assert sorted(bench.handed_out) == ["_000002.safetensors", "_000004.safetensors"]
    short = bench.at("short")
    short.train(number_of_steps=4)
    finished, on_the_way = (
        adapter_file.read(short.directory / "adapter.safetensors"),
        read(bench, "_000004.safetensors"),
    )
    assert on_the_way.spec == finished.spec
    assert all(on_the_way.tensors[key].equal(tensor) for key, tensor in finished.tensors.items())


def test_the_moving_average_is_exported_too(bench):
    exporting(bench, 4).train(number_of_steps=4, ema_decay=0.9)
    assert sorted(bench.handed_out) == ["_000004.safetensors", "_000004_ema.safetensors"]
    assert adapter_file.read(bench.directory / "adapter_ema.safetensors").tensors.keys() == (
        read(bench, "_000004_ema.safetensors").tensors.keys()
    )


def test_an_export_says_at_which_step_it_was_made_and_of_which_training(bench):
    exporting(bench, 3).train(number_of_steps=4)
    metadata = read(bench, "_000003.safetensors").metadata
    assert (metadata["step"], metadata["identity"]) == ("3", "whose")
    assert json.loads(metadata["lora_config"])["step"] == 3
    assert "unfinished" not in metadata


def test_a_stopped_training_hands_out_its_adapter_so_far_marked_as_unfinished(bench):
    with pytest.raises(Stopped):
        bench.train(stop_after=3, number_of_steps=5)
    assert list(bench.handed_out) == ["_000003_stopped.safetensors"]
    assert read(bench, "_000003_stopped.safetensors").metadata["unfinished"] == "stopped at step 3 of 5"


def test_a_training_stopped_before_its_first_step_has_nothing_to_hand_out(bench):
    with pytest.raises(Stopped):
        bench.train(stop_after=0)
    assert bench.handed_out == {}


def test_an_export_that_cannot_be_written_is_said_and_ends_nothing(bench, monkeypatch):
    whole = bench.at("whole")
    whole.train()
    write = adapter_file.write

    def fail_aside(path, *args):
        if "exports" in path.parts:
            raise WriteFailed(path, "No space left on device", None)
        write(path, *args)

    monkeypatch.setattr(adapter_file, "write", fail_aside)
    exporting(bench, 2).train()
    said = [line.partition(":")[0] for line in bench.said if "exported" in line]
    assert said == ["no adapter was exported at step 2", "no adapter was exported at step 4"]
    assert bench.results()["adapter.safetensors"] == whole.results()["adapter.safetensors"]


def test_what_a_killed_process_left_of_an_export_is_no_part_of_the_result(bench):
    (bench.directory / "exports").mkdir(parents=True)
    (bench.directory / "exports" / "adapter_000002.safetensors").write_bytes(b"half")
    bench.train()
    assert not (bench.directory / "exports").exists()


def test_a_checkpoint_is_saved_after_so_many_minutes_too(bench, monkeypatch):
    written, write = [], checkpoint.write
    monkeypatch.setattr(loop.checkpoint, "write", lambda *args: (written.append(args[2].step), write(*args)))
    bench.resources = Resources(device="cpu", checkpoint_every=100, checkpoint_minutes=1e-9)
    bench.train(number_of_steps=3)
    assert written == [1, 2, 3]


def test_room_is_needed_for_the_exports_that_are_still_to_come(bench):
    job = exporting(bench, 2)
    wanted = type("Job", (), {"params": type("P", (), {"number_of_steps": 5}), "work": job.workspace()})
    assert [exports_due(wanted, step) for step in range(6)] == [2, 2, 1, 1, 0, 0]
