"""Shapes and rank limits of targeted layers, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stages.adapters.target_layers import layer_shapes, rank_limit, spec_rank_limit
from stages.errors import FilterMatchesNothing, RankTooLarge
from stages.records import AdapterSpec

HEADER = {
    "model.model.transformer.layers.0.self_attn.to_qkv.weight": (96, 32),
    "model.model.transformer.layers.0.pre_norm.gamma": (32,),
    "model.model.transformer.memory_tokens": (64, 32),
    "model.model.preprocess_conv.weight": (16, 16, 1),
    "model.model.to_timestep_embed.0.weight": (32, 20),
    "model.model.to_timestep_embed.0.bias": (32,),
    "conditioner.conditioners.seconds_total.embedder.embedding.1.weight": (24, 256),
    "conditioner.conditioners.prompt.padding_embedding": (24,),
    "pretransform.model.encoder.layers.0.weight": (8, 8),
}


def test_layers_are_named_relative_to_their_root_and_convolutions_are_matrices():
    assert layer_shapes(HEADER) == {
        "model.transformer.layers.0.self_attn.to_qkv": (96, 32),
        "model.preprocess_conv": (16, 16),
        "model.to_timestep_embed.0": (32, 20),
        "conditioners.seconds_total.embedder.embedding.1": (24, 256),
    }


def test_the_limit_is_the_smallest_dimension_and_names_its_layer():
    assert rank_limit(layer_shapes(HEADER)) == (16, "model.preprocess_conv")


def test_only_kinds_with_singular_vectors_have_a_limit():
    shapes = layer_shapes(HEADER)
    assert spec_rank_limit(AdapterSpec(kind="dora-rows", rank=200, alpha=1.0), shapes) is None
    assert spec_rank_limit(AdapterSpec(kind="bora-xs", rank=16, alpha=1.0), shapes) == 16


def test_a_rank_above_the_limit_names_the_layer_and_excluding_it_helps():
    shapes = layer_shapes(HEADER)
    with pytest.raises(RankTooLarge, match=r"at most 16 here; got 17\. model\.preprocess_conv"):
        spec_rank_limit(AdapterSpec(kind="lora-xs", rank=17, alpha=1.0), shapes)
    assert spec_rank_limit(AdapterSpec(kind="lora-xs", rank=17, alpha=1.0, exclude=("conv",)), shapes) == 20


def test_a_filter_without_a_match_is_found_without_torch():
    with pytest.raises(FilterMatchesNothing):
        spec_rank_limit(AdapterSpec(kind="lora", rank=1, alpha=1.0, include=("nowhere",)), layer_shapes(HEADER))


def test_planning_an_adapter_imports_neither_torch_nor_numpy():
    script = (
        "import sys; from stages import catalogue; from stages.adapters import target_layers\n"
        "from stages.records import AdapterSpec\n"
        "for kind in catalogue.adapter_kinds():\n"
        "    target_layers.spec_rank_limit(AdapterSpec(kind=kind, rank=2, alpha=1.0), {'a.b': (4, 8)})\n"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
