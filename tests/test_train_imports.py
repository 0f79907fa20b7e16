"""Modules that a training on the CPU must not import: torch's compiler, which takes seconds and is for CUDA only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINING = """
import sys
from pathlib import Path
from tests.small_training import Bench

Bench.of_latents(Path(sys.argv[1]), lengths=(12, 20)).train(number_of_steps=2)
print(*(name for name in ("sympy", "torch._dynamo", "torch._inductor", "transformers") if name in sys.modules))
"""


def test_a_training_from_cached_latents_imports_no_compiler(tmp_path):
    command = [sys.executable, "-c", TRAINING, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
