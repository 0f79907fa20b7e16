"""What `bench` is asked for is checked before anything is measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.errors import RecipeError
from pipeline.grid import checked_grid

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


def test_flags_become_a_grid_in_its_own_words():
    grid = checked_grid(AXES)
    assert (grid.precisions, grid.checkpointing, grid.deterministic, grid.steps) == (["bf16"], [False, True], [True], 3)


def test_every_wrong_value_is_named_at_once():
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


def test_a_wrong_value_ends_the_command_as_wrong_use_without_loading_torch():
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
