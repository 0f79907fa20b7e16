"""NaN and infinity in a safetensors file are found without arrays, in every dtype and at every place."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline.cli import app
from stages.adapters.finite_values import not_finite
from tests.small_datasets import clips, folder

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 7, 30])
def test_a_value_that_is_not_finite_is_found_in_its_tensor(tmp_path, dtype, value, place):
    tensors = {name: torch.linspace(-3, 3, 31).to(dtype) for name in ("a", "b", "c")}
    tensors["b"][place] = value
    save_file(tensors, tmp_path / "x.safetensors")
    assert list(not_finite(tmp_path / "x.safetensors")) == ["b"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_and_smallest_finite_values_are_no_finding(tmp_path, dtype):
    limits = torch.finfo(dtype)
    extreme = torch.tensor([limits.max, limits.min, limits.tiny, -limits.tiny, 0.0, 1.0], dtype=dtype)
    many = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"extreme": extreme, "many": many, "number": torch.arange(5)}, tmp_path / "x.safetensors")
    assert list(not_finite(tmp_path / "x.safetensors")) == []


@pytest.mark.parametrize("command", ["plan", "run"])
def test_an_adapter_with_such_a_value_is_refused_before_anything_runs(tmp_path, command):
    layer = "model.transformer.layers.0.self_attn.to_out.parametrizations.weight.0."
    settings = {"rank": 2, "alpha": 2.0, "adapter_type": "lora", "include": ["layers.0.self_attn.to_out"]}
    tensors = {layer + "lora_A": torch.zeros(2, 192), layer + "lora_B": torch.zeros(192, 2)}
    tensors[layer + "lora_B"][100, 1] = float("nan")
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, metadata={"lora_config": json.dumps(settings)})
    data = folder(tmp_path / "clips", clips("a"))
    words = [command, str(data), "--model", "tiny-base", "--adapter-type", "lora", "--rank", "2", "--pre-encode"]
    words += ["--include", "layers.0.self_attn.to_out", "--lora-checkpoint-url", str(file)]
    done = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "s"), "--output", str(tmp_path / "o")])
    assert done.exit_code == 2
    assert f"a.safetensors holds NaN or infinite values ({layer}lora_B)" in done.stderr
    assert not list((tmp_path / "s").glob("ingest/*"))
