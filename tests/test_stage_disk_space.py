"""Room on the disk: what a stage will write is compared with what is free before it starts."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace

import pytest

from stages import disk_space
from stages.contract import Resources
from stages.disk_space import SpaceNeed, check_space, free_bytes
from stages.errors import InsufficientDiskSpace
from stages.train.forecast import disk_space as forecast
from tests.small_training import Bench


def need(folder, num_bytes, flag="--store", **more):
    return SpaceNeed(**{"what": "latents", "folder": folder, "flag": flag, "num_bytes": num_bytes, **more})


@pytest.fixture
def disk(monkeypatch):
    """Sets what a disk has free; the check is made as on that disk from then on."""

    def has(free):
        monkeypatch.setattr(disk_space, "free_bytes", lambda folder: free)

    return has


@pytest.fixture
def two_disks(monkeypatch, tmp_path):
    """A folder `store` and a folder `out`, on disks of their own, with what is free on each."""
    free = {"store": 1000, "out": 10}
    for name in free:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(disk_space, "disk_of", lambda folder: folder.name)
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: free[folder.name])
    return tmp_path


def test_what_fits_exactly_is_let_through(tmp_path, disk):
    disk(100)
    check_space("this training", [need(tmp_path, 60), need(tmp_path, 40)])


def test_two_folders_of_one_disk_must_find_room_together(tmp_path, disk):
    disk(99)
    with pytest.raises(InsufficientDiskSpace, match="needs at least 100 B"):
        check_space("this training", [need(tmp_path / "store", 60), need(tmp_path / "out", 40)])


def test_each_disk_is_compared_with_what_is_written_there(two_disks):
    check_space("this training", [need(two_disks / "store", 1000), need(two_disks / "out", 10)])
    with pytest.raises(InsufficientDiskSpace, match="choose another folder with --output"):
        check_space("this training", [need(two_disks / "store", 500), need(two_disks / "out", 11, "--output")])


def test_the_message_names_need_parts_free_space_folder_and_ways_out(tmp_path, disk):
    disk(3 << 20)
    with pytest.raises(InsufficientDiskSpace) as caught:
        check_space("this training", [need(tmp_path, 5 << 20, what="checkpoints", remedy="keep fewer")])
    assert str(caught.value) == (
        f"this training needs at least 5.2 MB in {tmp_path} (checkpoints 5.2 MB), and 3.1 MB are free there. It was "
        "not begun; finished work is kept. Free some space there, or choose another folder with --store, or keep "
        "fewer; then run the same command again."
    )


def test_a_disk_that_does_not_know_its_size_refuses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=0, f_bfree=0, f_bavail=0, f_frsize=4096))
    assert free_bytes(tmp_path) is None
    check_space("this training", [need(tmp_path, 1 << 60)])


@pytest.mark.parametrize(("user", "free"), [(0, 500), (1000, 300)])
def test_what_a_disk_reserves_is_free_for_root_alone(tmp_path, monkeypatch, user, free):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=9, f_bfree=5, f_bavail=3, f_frsize=100))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert free_bytes(tmp_path) == free


def test_room_is_looked_up_above_a_folder_that_does_not_exist_yet(tmp_path):
    assert free_bytes(tmp_path / "new" / "newer") == pytest.approx(free_bytes(tmp_path), rel=0.2)


# A training


def sizes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "prodigy"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_estimate_of_a_training_is_a_lower_bound_and_not_far_off(tmp_path, monkeypatch, optimizer, ema_decay):
    """Compared with the most that its folder holds, when the adapter files lie beside all checkpoints kept."""
    if optimizer != "adamw":
        pytest.importorskip("pytorch_optimizer")
    estimated, held = [], []
    bench = Bench.of_latents(tmp_path)
    check, keep = forecast.check_space, "stages.train.run.keep_last_checkpoint"
    monkeypatch.setattr(
        forecast, "check_space", lambda task, needs: (estimated.append(needs[0].num_bytes), check(task, needs))
    )
    monkeypatch.setattr(keep, lambda directory, step: held.append(sizes(directory)))
    bench.train(optimizer=optimizer, ema_decay=ema_decay, rank=64, include=("layers",))
    assert 0.8 * held[0] < estimated[0] <= held[0]


@pytest.mark.parametrize(("step", "present", "due"), [(0, 0, 5), (3, 1, 4), (4, 2, 3), (9, 2, 1), (10, 2, 0)])
def test_a_resumed_training_needs_room_only_for_what_is_still_to_be_written(tmp_path, monkeypatch, step, present, due):
    monkeypatch.setattr(forecast, "num_values", lambda training: 10)
    monkeypatch.setattr(forecast, "num_parameters", lambda adapter: 10)
    for number in range(present):
        (tmp_path / "checkpoints" / f"step-{number}").mkdir(parents=True)
    resources = Resources(checkpoint_every=2, keep_checkpoints=2)
    params = SimpleNamespace(number_of_steps=10, ema_decay=None, optimizer="adamw", export_precision="fp16")
    job = SimpleNamespace(work=SimpleNamespace(directory=tmp_path, resources=resources), params=params)
    training = SimpleNamespace(step=step, network=SimpleNamespace(adapter=None))
    assert forecast.checkpoints_due(job, step) == due
    checkpoint, adapter = 120, 60
    more = 2 - present if due else 0
    assert forecast.peak(job, training) == max(checkpoint * (more + 1 if due else 0), checkpoint * more + adapter)


def test_a_training_whose_checkpoints_do_not_fit_is_refused_before_its_first_step(tmp_path, disk):
    disk(1000)
    bench = Bench.of_latents(tmp_path)
    with pytest.raises(InsufficientDiskSpace, match=re.escape("(--keep-checkpoints 1)")):
        bench.train()
    assert bench.told == []
    assert not (bench.directory / "checkpoints").exists()


def test_a_training_of_one_checkpoint_is_not_told_to_keep_fewer(tmp_path, disk):
    disk(1000)
    bench = Bench.of_latents(tmp_path)
    bench.resources = Resources(device="cpu", keep_checkpoints=1)
    with pytest.raises(InsufficientDiskSpace) as caught:
        bench.train()
    assert "fewer" not in str(caught.value)
