"""Loading weights: strict, from either file layout, with one extra level in names; shapes of the published models."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.contract import Weights
from stages.errors import WeightsMismatch, WeightsNotFound
from stages.models.load_weights import (
    AUTOENCODER,
    CONDITIONER,
    DENOISER,
    known_name,
    load_autoencoder,
    load_conditioner,
    load_denoiser,
)
from tests.published import parts
from tests.small_networks import TINY, config


@pytest.fixture(scope="module")
def stored():
    return load_file(TINY / "model.safetensors")


def weights(folder, stored, read=None):
    save_file(stored, folder / "model.safetensors")
    return Weights(model="tiny", folder=folder, config=read or config(), digests={})


def test_loaded_networks_hold_the_stored_values_frozen_and_in_eval_mode(tmp_path, stored):
    found = weights(tmp_path, stored)
    for prefix, load in ((DENOISER, load_denoiser), (CONDITIONER, load_conditioner), (AUTOENCODER, load_autoencoder)):
        network = load(found)
        state = network.state_dict()
        assert {prefix + name for name in state} == {name for name in stored if name.startswith(prefix)}
        assert all(torch.equal(tensor, stored[prefix + name]) for name, tensor in state.items())
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_tensor_is_cast_buffers_included(tmp_path, stored, dtype):
    network = load_denoiser(weights(tmp_path, stored), dtype=dtype)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {dtype}
    assert network.dtype == dtype


def test_every_missing_extra_and_misshapen_tensor_is_listed(tmp_path, stored):
    broken = dict(stored)
    for name in ("model.model.project", "somewhere.else"):
        broken[name] = torch.zeros(2)
    missing = ["model.model.transformer.memory_tokens", "model.model.to_cond_embed.0.weight"]
    for name in missing:
        del broken[name]
    broken["model.model.preprocess_conv.weight"] = torch.zeros(3, 3, 1)

    with pytest.raises(WeightsMismatch) as caught:
        load_denoiser(weights(tmp_path, broken))

    assert sorted(caught.value.missing) == sorted(missing)
    assert sorted(caught.value.extra) == ["model.model.project", "somewhere.else"]
    (misshapen,) = caught.value.misshapen
    assert "model.model.preprocess_conv.weight" in misshapen
    assert "(3, 3, 1)" in misshapen
    assert "(16, 16, 1)" in misshapen


def test_a_mismatch_of_another_component_does_not_stop_loading(tmp_path, stored):
    without = {name: tensor for name, tensor in stored.items() if not name.startswith(DENOISER)}
    loaded = load_autoencoder(weights(tmp_path, without)).state_dict()
    assert torch.equal(loaded["bottleneck.bias"], stored["pretransform.model.bottleneck.bias"])


def test_no_tensor_is_left_uninitialised(tmp_path, stored):
    for load in (load_denoiser, load_conditioner, load_autoencoder):
        assert not any(tensor.is_meta for tensor in load(weights(tmp_path, stored)).state_dict().values())


def test_a_stand_alone_autoencoder_file_has_no_prefix(tmp_path, stored):
    read = config()
    alone = {name.removeprefix(AUTOENCODER): tensor for name, tensor in stored.items() if name.startswith(AUTOENCODER)}
    own = {"sample_rate": 44100, "model": read["model"]["pretransform"]["config"]}
    audio = torch.randn(1, 2, 8192)
    (tmp_path / "alone").mkdir()
    of_model = load_autoencoder(weights(tmp_path, stored)).encode(audio)
    assert torch.equal(load_autoencoder(weights(tmp_path / "alone", alone, own)).encode(audio), of_model)


def test_a_stand_alone_file_with_a_stray_tensor_is_refused(tmp_path, stored):
    alone = {name.removeprefix(AUTOENCODER): tensor for name, tensor in stored.items() if name.startswith(AUTOENCODER)}
    alone["decoder.layers.9.weight"] = torch.zeros(1)
    own = {"sample_rate": 44100, "model": config()["model"]["pretransform"]["config"]}
    with pytest.raises(WeightsMismatch, match=r"decoder\.layers\.9"):
        load_autoencoder(weights(tmp_path, alone, own))


def test_one_extra_level_in_a_name_is_removed():
    known = {"a.b.c", "a.c", "x.y"}
    assert known_name("a.b.c", known) == "a.b.c"
    assert known_name("a.inner.b.c", known) == "a.b.c"
    assert known_name("a.b.inner.c", known) == "a.b.c"
    assert known_name("inner.a.c", known) is None, "the first component stays"
    assert known_name("a.inner.inner.c", known) is None, "one level only"


def test_of_several_removable_levels_the_first_is_removed():
    assert known_name("m.p.q.r", {"m.p.r", "m.q.r"}) == "m.q.r"


def test_a_file_with_one_more_level_loads(tmp_path, stored):
    older = {
        name.replace("model.model.transformer.", "model.model.inner.transformer."): t for name, t in stored.items()
    }
    network = load_denoiser(weights(tmp_path, older))
    assert torch.equal(network.model.transformer.memory_tokens, stored["model.model.transformer.memory_tokens"])


def test_two_stored_tensors_for_one_parameter_are_a_mismatch(tmp_path, stored):
    doubled = dict(stored)
    doubled["model.model.inner.preprocess_conv.weight"] = torch.zeros(16, 16, 1)
    with pytest.raises(WeightsMismatch) as caught:
        load_denoiser(weights(tmp_path, doubled))
    assert caught.value.extra == ("model.model.inner.preprocess_conv.weight",)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(WeightsNotFound, match=re.escape(str(tmp_path))):
        load_denoiser(Weights(model="tiny", folder=tmp_path, config=config(), digests={}))


# The published models, on the meta device (their tensors: test_models_published.py) ----------------------------------


def published(model):
    return {part.prefix: part.network for part in parts(model)}


def test_same_l_has_seven_sine_layers_in_its_decoder_and_none_in_its_encoder():
    autoencoder = published("medium-base")[AUTOENCODER]
    names = [
        [layer.ff.ff[0].activation.__name__ for layer in stage.transformers]
        for stage in (autoencoder.encoder.layers["0"], autoencoder.decoder.layers["3"])
    ]
    assert names == [["silu"] * 12, ["silu"] * 5 + ["sine"] * 7]


def test_linear_layers_come_in_the_order_in_which_adapters_are_initialised():
    names = [
        name for name, module in published("medium-base")[DENOISER].named_modules() if hasattr(module, "in_features")
    ]
    assert names[:6] == [f"model.{part}.{at}" for part in _EMBEDDERS for at in (0, 2)]
    assert names[6:14] == [f"model.transformer.layers.0.{part}" for part in _LAYER]
    assert names[-4:] == [f"model.transformer.{part}" for part in _TAIL]


_EMBEDDERS = ("to_timestep_embed", "to_cond_embed", "to_global_embed")
_LAYER = (
    "self_attn.to_qkv",
    "self_attn.to_out",
    "cross_attn.to_q",
    "cross_attn.to_kv",
    "cross_attn.to_out",
    "ff.ff.0.proj",
    "ff.ff.2",
    "to_local_embed.0",
)
_TAIL = ("project_in", "project_out", "global_cond_embedder.0", "global_cond_embedder.2")
