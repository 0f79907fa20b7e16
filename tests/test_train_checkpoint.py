"""Checkpoints: complete or unused, of the same run only, the newest ones kept."""

from __future__ import annotations

import json

import pytest
import torch

from stages.train.record import checkpoint
from stages.train.record.checkpoint import Checkpoint, CheckpointUnusable, keep_newest, keep_only, newest, read, write


def made(step):
    return Checkpoint(
        step=step,
        adapter={"layer.lora_A": torch.full((2, 3), float(step))},
        optimizer={"exp_avg.layer.lora_A": torch.full((2, 3), step + 0.5), "step.layer.lora_A": torch.tensor(step)},
        history={"figures": torch.zeros(step, 3, 1), "norms": torch.ones(step)},
        notes={"before": [1.0, 2.0]},
    )


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = made(3)
    found = read(write(tmp_path, "run", saved), "run")
    assert (found.step, found.notes) == (3, {"before": [1.0, 2.0]})
    for part in ("adapter", "optimizer", "history"):
        before, after = getattr(saved, part), getattr(found, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_newest_checkpoint_is_used(tmp_path):
    for step in (2, 10, 9):
        write(tmp_path, "run", made(step))
    assert newest([tmp_path], "run", 100, print).step == 10


@pytest.mark.parametrize("file", ["tensors.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["torn", "flipped", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, file, damage):
    for step in (2, 4):
        write(tmp_path, "run", made(step))
    target = tmp_path / "step-00000004" / file
    content = target.read_bytes()
    if damage == "gone":
        target.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :]
        target.write_bytes(content[:middle] if damage == "torn" else flipped)
    said = []
    assert newest([tmp_path], "run", 100, said.append).step == 2
    assert "step-00000004" in said[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [('"step": 4', '"step": 3'), ('"identity": "run"', '"identity": "ran"'), ('"notes": {', '"motes": {')],
)
def test_a_record_with_another_value_is_not_gone_on_from(tmp_path, before, after):
    file = write(tmp_path, "run", made(4)) / "checkpoint.json"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    for identity in ("run", "ran"):
        with pytest.raises(CheckpointUnusable, match="its record is not what was saved"):
            read(file.parent, identity)


@pytest.mark.parametrize("name", ["tensors.safetensors", "checkpoint.json"])
def test_a_folder_in_place_of_a_file_makes_a_checkpoint_unusable(tmp_path, name):
    file = write(tmp_path, "run", made(2)) / name
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointUnusable, match="cannot be read"):
        read(file.parent, "run")


def test_with_every_checkpoint_damaged_there_is_none(tmp_path):
    (write(tmp_path, "run", made(2)) / "tensors.safetensors").write_bytes(b"")
    assert newest([tmp_path], "run", 100, lambda line: None) is None


def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    write(tmp_path, "another run", made(2))
    said = []
    assert newest([tmp_path], "run", 100, said.append) is None
    assert "another training" in said[0]


def test_a_checkpoint_of_another_format_is_not_used(tmp_path):
    file = write(tmp_path, "run", made(2)) / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    with pytest.raises(CheckpointUnusable, match="format 99"):
        read(tmp_path / "step-00000002", "run")


def test_a_checkpoint_beyond_the_requested_steps_is_skipped(tmp_path):
    for step in (2, 8):
        write(tmp_path, "run", made(step))
    said = []
    assert newest([tmp_path], "run", 5, said.append).step == 2
    assert "beyond the 5 steps" in said[0]


def test_of_two_folders_the_newer_checkpoint_is_used(tmp_path):
    write(tmp_path / "here", "run", made(2))
    write(tmp_path / "earlier", "run", made(4))
    assert newest([tmp_path / "here", tmp_path / "earlier"], "run", 100, print).step == 4
    assert newest([tmp_path / "nowhere"], "run", 100, print) is None


def test_an_unfinished_write_is_not_a_checkpoint_and_is_deleted(tmp_path):
    write(tmp_path, "run", made(2))
    half = tmp_path / "step-00000004.writing"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert newest([tmp_path], "run", 100, print).step == 2
    keep_newest(tmp_path, 1)
    assert steps_in(tmp_path) == ["step-00000002"]


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    write(tmp_path, "run", made(2))

    def full_disk(final, content):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "atomic_write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, "run", made(4))
    assert newest([tmp_path], "run", 100, print).step == 2


def test_a_step_saved_again_replaces_a_damaged_checkpoint(tmp_path):
    (write(tmp_path, "run", made(2)) / "tensors.safetensors").write_bytes(b"")
    write(tmp_path, "run", made(2))
    assert read(tmp_path / "step-00000002", "run").step == 2


def test_old_checkpoints_are_deleted(tmp_path):
    for step in (2, 4, 10):
        write(tmp_path, "run", made(step))
    keep_newest(tmp_path, 2)
    assert steps_in(tmp_path) == ["step-00000004", "step-00000010"]
    keep_only(tmp_path, 4)
    assert steps_in(tmp_path) == ["step-00000004"]


def test_the_same_state_gives_the_same_bytes(tmp_path):
    first, second = (write(tmp_path / name, "run", made(3)) for name in ("a", "b"))
    for file in ("tensors.safetensors", "checkpoint.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
