"""The commands of `make tiny-base` follow on one another: a few steps of each on the CPU give a folder that loads."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from stages.models.checkpoint_folder import open_folder
from stages.models.load_weights import load_autoencoder, load_denoiser, load_text_encoder

ROOT = Path(__file__).parents[1]
SMALL = {
    "SECONDS": "600",
    "AUTOENCODER_FLAGS": "--most-steps 2 --pool 2 --held-out 2 --set latent_channels=128 chunk_frames=4 batch_size=1 "
    "num_frames=4 warm_up_steps=1",
    "JUDGE_FLAGS": "--seconds 0.1 --copies --held-out 4 --part 4",
    "TRANSFORMER_FLAGS": "--most-steps 2 --pool 8 --part 4 --first 4 --held-out 2 --processes 1 --grid [[1,1]] --set "
    "width=64 depth=1 text_width=32 text_depth=1 text_heads=2 vocabulary=400 frames_per_batch=64 warm_up_steps=1",
}


def commands() -> list[list[str]]:
    """Module and arguments of each command of the chain."""
    small = [f"{name}={value}" for name, value in SMALL.items()]
    done = subprocess.run(["make", "-n", "tiny-base", *small], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines if "-m stages.pretrain." in line]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_few_steps_of_each_training_give_a_folder_that_the_product_loads(tmp_path, monkeypatch):
    chain = commands()
    monkeypatch.chdir(tmp_path)
    modules = []
    for module, *arguments in chain:
        import_module(module).main(arguments)
        modules.append(module.removeprefix("stages.pretrain."))
    assert modules == ["autoencoder.run", "judge", "transformer.run", "assemble"]
    weights = open_folder("tiny-base", tmp_path / "build" / "tiny-base" / "model")
    assert all(load(weights) for load in (load_autoencoder, load_denoiser, load_text_encoder))
