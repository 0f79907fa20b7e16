"""Adapter files: the format of the public tools, deterministic bytes, strict reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.adapters.adapter_file import read, write
from stages.errors import AdapterMismatch, AdapterNotWritable
from stages.records import AdapterSpec

SPEC = AdapterSpec(kind="dora-rows", rank=2, alpha=3.0, dropout=0.1, include=("layers.[0-1]",), exclude=())
LAYER = "model.transformer.layers.0.ff.ff.2.parametrizations.weight.0."


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"magnitude": (5,), "lora_B": (5, 2), "lora_A": (2, 7)}
    return {LAYER + leaf: torch.randn(shape, generator=generator) for leaf, shape in shapes.items()}


def foreign(path: Path, config: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A file as another tool writes it."""
    text = config if isinstance(config, str) else json.dumps(config)
    save_file({k: v.half() for k, v in (tensors or some_tensors()).items()}, path, metadata={"lora_config": text})
    return path


def faults_of(path: Path) -> str:
    with pytest.raises(AdapterMismatch) as caught:
        read(path)
    return "\n".join(caught.value.differences)


def test_settings_are_written_in_the_order_and_types_of_the_public_tools(tmp_path):
    write(tmp_path / "a.safetensors", some_tensors(), SPEC)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["lora_config"] == (
            '{"rank": 2, "alpha": 3.0, "adapter_type": "dora-rows", "dropout": 0.1, '
            '"include": ["layers.[0-1]"], "exclude": []}'
        )
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_settings_that_are_whole_numbers_or_absent_keep_their_json_types(tmp_path):
    write(tmp_path / "a.safetensors", some_tensors(), AdapterSpec(kind="lora", rank=2, alpha=2))
    assert read(tmp_path / "a.safetensors").metadata["lora_config"] == (
        '{"rank": 2, "alpha": 2.0, "adapter_type": "lora", "dropout": 0.0, "include": null, "exclude": null}'
    )


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 1e-3), (torch.float32, 0.0)], ids=str)
def test_what_is_written_is_read_back(tmp_path, dtype, rounding):
    write(tmp_path / "a.safetensors", some_tensors(), SPEC, {"base_model": "tiny-base"}, dtype)

    file = read(tmp_path / "a.safetensors")

    assert file.spec == SPEC
    assert file.metadata["base_model"] == "tiny-base"
    assert file.tensors.keys() == some_tensors().keys()
    for key, tensor in some_tensors().items():
        assert file.tensors[key].dtype == torch.float32
        torch.testing.assert_close(file.tensors[key], tensor, rtol=rounding, atol=0)


def test_the_same_values_give_the_same_bytes_whatever_the_order(tmp_path):
    metadata = {name: name for name in ("step", "base_digest", "base_model", "a", "b", "c")}
    contents = set()
    for turn in range(6):
        tensors = dict(sorted(some_tensors().items(), reverse=bool(turn % 2)))
        write(tmp_path / "a.safetensors", tensors, SPEC, dict(sorted(metadata.items(), reverse=bool(turn % 2))))
        contents.add((tmp_path / "a.safetensors").read_bytes())
    assert len(contents) == 1


def test_with_lora_config_alone_the_bytes_equal_those_of_the_safetensors_library(tmp_path):
    write(tmp_path / "ours.safetensors", some_tensors(), SPEC)
    config = json.loads(read(tmp_path / "ours.safetensors").metadata["lora_config"])
    usual = foreign(tmp_path / "usual.safetensors", config)
    assert (tmp_path / "ours.safetensors").read_bytes() == usual.read_bytes()


@pytest.mark.parametrize(
    ("value", "dtype", "what"),
    [
        (float("nan"), torch.float32, "not finite"),
        (float("inf"), torch.float16, "not finite"),
        (7e4, torch.float16, "beyond the range of float16"),
    ],
)
def test_a_value_beyond_the_dtype_is_an_error_and_leaves_no_file(tmp_path, value, dtype, what):
    tensors = some_tensors()
    tensors[LAYER + "lora_B"][1, 1] = value
    with pytest.raises(AdapterNotWritable, match=what) as caught:
        write(tmp_path / "a.safetensors", tensors, SPEC, dtype=dtype)
    assert LAYER + "lora_B" in str(caught.value) and LAYER + "lora_A" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_large_value_fits_a_float32_file(tmp_path):
    tensors = {key: tensor * 1e6 for key, tensor in some_tensors().items()}
    write(tmp_path / "a.safetensors", tensors, SPEC, dtype=torch.float32)
    assert torch.equal(read(tmp_path / "a.safetensors").tensors[LAYER + "lora_A"], tensors[LAYER + "lora_A"])


def test_unknown_keys_other_dtypes_and_a_second_config_are_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="not the name of an adapter tensor"):
        write(path, {"model.x.weight": torch.ones(2)}, SPEC)
    with pytest.raises(ValueError, match="float16 or float32"):
        write(path, some_tensors(), SPEC, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="lora_config"):
        write(path, some_tensors(), SPEC, {"lora_config": "{}"})


def test_absent_settings_get_the_defaults_of_the_public_tools(tmp_path):
    tensors = {key: tensor for key, tensor in some_tensors().items() if "magnitude" not in key}
    spec = read(foreign(tmp_path / "a.safetensors", {}, tensors)).spec
    assert spec == AdapterSpec(kind="lora", rank=2, alpha=2.0)


@pytest.mark.parametrize("leaf", ["lora_A", "lora_B", "M_xs"])
def test_an_absent_rank_is_taken_from_any_low_rank_tensor(tmp_path, leaf):
    shape = {"lora_A": (4, 7), "lora_B": (5, 4), "M_xs": (4, 4)}[leaf]
    path = foreign(tmp_path / "a.safetensors", {"alpha": 1}, {LAYER + leaf: torch.ones(shape)})
    assert read(path).spec.rank == 4


@pytest.mark.parametrize(
    ("shape", "kind", "stored"),
    [((1, 7), "dora-cols", (7,)), ((5, 1), "dora-rows", (5,)), ((5,), "dora-rows", (5,))],
)
def test_the_old_name_dora_is_resolved_by_the_shape_of_its_magnitudes(tmp_path, shape, kind, stored):
    tensors = some_tensors() | {LAYER + "magnitude": torch.ones(shape)}
    file = read(foreign(tmp_path / "a.safetensors", {"adapter_type": "dora", "rank": 2}, tensors))
    assert file.spec.kind == kind
    assert file.tensors[LAYER + "magnitude"].shape == stored


def test_dropout_in_an_xs_file_is_ignored(tmp_path):
    path = foreign(
        tmp_path / "a.safetensors", {"adapter_type": "lora-xs", "dropout": 0.2}, {LAYER + "M_xs": torch.ones(2, 2)}
    )
    assert read(path).spec.dropout == 0.0


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"rank": 3}, "says rank 3, its tensors have 2"),
        ({"adapter_type": "loha"}, "adapter_type must be one of bora"),
        ({"alpha": "16"}, "alpha must be a finite number"),
        ({"include": "layers"}, "include must be a list of strings"),
        ({"exclude": [1]}, "exclude must be a list of strings"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
    ],
)
def test_invalid_settings_are_named(tmp_path, config, what):
    assert what in faults_of(foreign(tmp_path / "a.safetensors", config))


def test_every_fault_of_the_tensors_is_listed_at_once(tmp_path):
    tensors = some_tensors() | {
        "model.x.weight": torch.ones(1),
        LAYER.replace("weight.0.", "weight.1.") + "lora_A": torch.ones(2, 7),
        LAYER + "magnitude": torch.full((5,), torch.nan),
    }
    faults = faults_of(foreign(tmp_path / "a.safetensors", {}, tensors))
    assert "unknown tensor: model.x.weight" in faults
    assert "weight.1.lora_A" in faults
    assert f"not finite: {LAYER}magnitude" in faults


def test_layers_of_different_ranks_are_refused(tmp_path):
    other = LAYER.replace("layers.0", "layers.1")
    tensors = some_tensors() | {other + "lora_A": torch.ones(3, 7)}
    faults = faults_of(foreign(tmp_path / "a.safetensors", {}, tensors))
    assert "rank 2: " in faults and f"rank 3: {other}lora_A" in faults


def test_a_file_that_is_not_an_adapter_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    assert "cannot be read" in faults_of(path)
    path.write_bytes(b"not tensors at all")
    assert "cannot be read" in faults_of(path)
    save_file(some_tensors(), path)
    assert "no lora_config" in faults_of(path)
    assert "no lora_A, lora_B or M_xs" in faults_of(foreign(path, {}, {LAYER + "magnitude": torch.ones(3)}))


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, some_tensors(), SPEC)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert f"it is cut short: {len(whole) - 3:,} of {len(whole):,} bytes are there" in faults_of(path)
    path.write_bytes(whole + b"123")
    assert "3 bytes follow its tensors" in faults_of(path)
