"""The grid of `bench` is validated before anything is measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.bench_grid import checked_grid
from pipeline.errors import RecipeError

AXES = {
    "model": ["tiny-base"],
    "frames": [8],
    "adapter_type": ["lora"],
    "base_precision": ["bfloat16"],
    "batch_size": [1],
    "gradient_checkpointing": ["off", "on"],
    "deterministic": ["on"],
    "rank": [2],
    "steps": [3],
}


def test_flags_become_a_grid():
    grid = checked_grid(AXES)
    assert (grid.precisions, grid.checkpointing, grid.deterministic, grid.steps) == (["bf16"], [False, True], [True], 3)


def test_every_invalid_value_is_reported_at_once():
    wrong = AXES | {
        "model": ["tiny-base", "huge"],
        "frames": [8, 0],
        "base_precision": ["fp8"],
        "deterministic": ["no"],
    }
    with pytest.raises(RecipeError) as caught:
        checked_grid(wrong)
    assert [error.loc for error in caught.value.errors] == [
        ("model",),
        ("frames",),
        ("base_precision",),
        ("deterministic",),
    ]
    assert "tiny-base" in str(caught.value) and "at least 1" in str(caught.value)


def test_an_invalid_value_exits_2_without_loading_torch():
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "sys.argv = ['sa3-trainer', 'bench', '--model', 'huge']\n"
        "from pipeline.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "model: must be one of" in done.stderr
    assert done.stdout.strip() == "False"


def faults(**changed) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        checked_grid(AXES | changed)
    return {str(error.loc[0]): error.msg for error in caught.value.errors}


def test_rank_batch_size_and_threads_have_the_limits_of_a_training():
    found = faults(rank=[300], batch_size=[1, 9], threads=[-1])
    assert found == {
        "rank": "must be at most 256",
        "batch_size": "must be at most 8",
        "threads": "must be at least 0",
    }
    assert checked_grid(AXES | {"rank": [256], "batch_size": [8], "threads": [0]}).rank == 256


def test_a_rank_that_the_layers_do_not_allow_is_refused_before_anything_is_measured():
    assert "must be at most 128 here; got 129" in faults(rank=[129], adapter_type=["lora", "lora-xs"])["rank"]
    assert checked_grid(AXES | {"rank": [128], "adapter_type": ["lora-xs"]}).rank == 128


@pytest.mark.parametrize("place", ["none/x.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, place):
    with pytest.raises(RecipeError, match=r"out: cannot be written \(.*\): name a file") as caught:
        checked_grid(AXES | {"frames": [0]}, tmp_path / place)
    assert [error.loc for error in caught.value.errors] == [("frames",), ("out",)]


def test_checking_whether_a_file_can_be_written_changes_nothing(tmp_path):
    there, new = tmp_path / "there.json", tmp_path / "new.json"
    there.write_text("{}")
    for target in (there, new):
        checked_grid(AXES, target)
    assert there.read_text() == "{}"
    assert not new.exists()
