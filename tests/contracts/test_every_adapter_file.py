"""An adapter file equals, values apart, the file that the reference writes for the same adapter.

Kinds that the reference has not are held to the contracts of `test_every_adapter` alone.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from stages.adapters.adapter_file import CONFIG, write
from stages.adapters.attach import attach
from stages.catalogue import adapter_kinds
from stages.contract import Weights
from stages.models.load_weights import load_conditioner, load_denoiser
from stages.records import AdapterSpec
from tests.parity.frame import families
from tests.small_networks import GOLDEN

ROOT = Path(os.environ.get("GOLDEN_DIR", GOLDEN))
REFERENCE_KINDS = {
    *("lora", "dora", "dora-rows", "dora-cols", "bora"),
    *("lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs"),
}
"""Each of these must have a recording."""


def header(path: Path) -> dict[str, Any]:
    """Keys with dtype and shape, and the settings."""
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        tensors = {key: (one.get_dtype(), one.get_shape()) for key, one in slices.items()}
        return {"tensors": tensors, "settings": file.metadata()[CONFIG]}


def is_old(path: Path) -> bool:
    """Magnitudes of two dimensions are read, and never written."""
    found = header(path)["tensors"].items()
    return any(key.endswith(".magnitude") and len(shape) == 2 for key, (_, shape) in found)


FILES = [path for family in families(ROOT) for path in sorted(family.folder.glob("adapters/*.safetensors"))]
RECORDED = [path for path in FILES if not is_old(path)]


@cache
def networks(family: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    config = json.loads((family / "model_config.json").read_text("utf-8"))
    weights = Weights(model=family.name, folder=family, config=config, digests={})
    return load_denoiser(weights), load_conditioner(weights)


def spec_of(settings: dict[str, Any]) -> AdapterSpec:
    patterns = {name: None if settings[name] is None else tuple(settings[name]) for name in ("include", "exclude")}
    kind, rank, alpha = (settings[name] for name in ("adapter_type", "rank", "alpha"))
    return AdapterSpec(kind=kind, rank=rank, alpha=alpha, dropout=settings["dropout"], **patterns)


def test_every_kind_of_the_reference_is_a_kind_of_ours_and_has_a_recording():
    assert set(adapter_kinds()) >= REFERENCE_KINDS
    assert {json.loads(header(path)["settings"])["adapter_type"] for path in RECORDED} == REFERENCE_KINDS


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_new_adapter_is_written_with_the_recorded_keys_shapes_dtypes_and_settings(path, tmp_path):
    recorded = header(path)
    adapter = attach(networks(path.parents[1]), spec_of(json.loads(recorded["settings"])))
    try:
        write(tmp_path / "adapter.safetensors", adapter.state(), adapter.spec, {"step": "0"})
    finally:
        adapter.detach()
    ours = header(tmp_path / "adapter.safetensors")
    assert ours["tensors"] == recorded["tensors"]
    assert typed(ours["settings"]) == typed(recorded["settings"])


def typed(settings: str) -> list[tuple[str, type, Any]]:
    """Fields in their order, with the types that JSON gives them."""
    return [(name, type(value), value) for name, value in json.loads(settings).items()]
