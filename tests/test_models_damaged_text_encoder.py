"""A damaged file in the folder of a text encoder is refused in words, at the latest when the encoder is loaded."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from stages.errors import WeightsMismatch, WeightsNotFound
from stages.models.checkpoint_folder import open_folder
from stages.models.nets.text_encoder import TextEncoder
from tests import test_models_checkpoint_folder
from tests.broken_files import emptied, linked_in_a_circle, lost, replaced_by_a_folder, truncated

folder = test_models_checkpoint_folder.folder  # a fixture

FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def overwritten(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 8)


def flipped_at_the_start(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 0x10
    file.write_bytes(content)


DAMAGES = (
    *(truncated, emptied, zeroed, overwritten),
    *(flipped_at_the_start, lost, replaced_by_a_folder, linked_in_a_circle),
)
HARMLESS = {("tokenizer_config.json", lost)}


def text_folder(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.is_dir())


def loaded(folder: Path) -> None:
    open_folder("tiny-base", folder)
    TextEncoder(text_folder(folder), max_length=24)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_before_anything_runs(folder, name, damage):
    damage(text_folder(folder) / name)
    if (name, damage) in HARMLESS:
        loaded(folder)
        return
    with pytest.raises(WeightsNotFound, match=name.replace("model.safetensors", "safetensors")):
        open_folder("tiny-base", folder)


def without_its_middle(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:40] + b"\0" + content[-40:])


def with_other_types(file: Path) -> None:
    file.write_text('{"model": 3, "encoder": [], "hidden_size": "wide", "model_type": "t5gemma", "added_tokens": {}}')


@pytest.mark.parametrize(("name", "damage"), [*zip(FILES[:2] * 2, cycle((without_its_middle, with_other_types)))])
def test_what_only_loading_shows_is_said_in_words(folder, name, damage: Callable[[Path], None]):
    damage(text_folder(folder) / name)
    with pytest.raises((WeightsNotFound, WeightsMismatch)) as caught:
        loaded(folder)
    assert str(text_folder(folder)) in str(caught.value)
