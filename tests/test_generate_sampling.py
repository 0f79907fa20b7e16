"""Generation with the small recorded family: seeds, lengths, batches, adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.errors import AdapterMismatch
from stages.generate.adapted_model import LoadedModel, add_adapters, load_model
from stages.generate.sampling import generate
from stages.generate.settings import AdapterUse, Generation
from stages.models.checkpoint_folder import open_folder

FAMILY = Path(__file__).parent / "golden" / "tiny-s"
BORA = FAMILY / "adapters" / "bora_r1.safetensors"
LORA = FAMILY / "adapters" / "lora_r1.safetensors"
CLIP = Generation(prompt="a pluck", seconds=0.5, seed=3, steps=2, cfg=2.0)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(open_folder("medium-base", FAMILY), torch.device("cpu"), torch.float32)


def heard(model: LoadedModel, *clips: Generation, adapters: tuple[AdapterUse, ...] = ()) -> list[torch.Tensor]:
    """The audio of clips with adapters, which are taken off again."""
    attached = add_adapters(model, adapters, print)
    try:
        return generate(model, clips)
    finally:
        for adapter in reversed(attached):
            adapter.detach()


def test_the_same_seed_gives_the_same_sound(model):
    assert torch.equal(*heard(model, CLIP), *heard(model, CLIP))


def test_another_seed_gives_another_sound(model):
    assert not torch.equal(*heard(model, CLIP), *heard(model, replace(CLIP, seed=4)))


def test_another_prompt_gives_another_sound(model):
    assert not torch.equal(*heard(model, CLIP), *heard(model, replace(CLIP, prompt="a kick")))


def test_a_negative_prompt_changes_the_sound(model):
    assert not torch.equal(*heard(model, CLIP), *heard(model, replace(CLIP, negative_prompt="hiss")))


def test_the_sound_is_as_long_as_was_asked(model):
    (audio_AX,) = heard(model, CLIP)
    assert audio_AX.shape == (2, 22_050)


def test_samples_lie_within_full_scale(model):
    (audio_AX,) = heard(model, CLIP)
    assert audio_AX.abs().max() <= 1


def test_a_clip_sounds_the_same_alone_and_in_a_batch(model):
    other = replace(CLIP, prompt="a kick", seed=9)
    together = heard(model, other, CLIP)
    torch.testing.assert_close(together[1], heard(model, CLIP)[0], atol=1e-5, rtol=0)


def test_clips_with_other_settings_do_not_share_a_batch(model):
    with pytest.raises(ValueError, match="same sampler"):
        generate(model, [CLIP, replace(CLIP, steps=3)])


def test_progress_is_reported_after_every_evaluation_of_the_network(model):
    calls = []
    generate(model, [replace(CLIP, sampler="rk4")], lambda done, total: calls.append((done, total)))
    assert calls == [(done, 8) for done in range(1, 9)]


def test_a_few_step_model_draws_the_noise_between_its_steps_from_the_seed(model):
    clip = Generation(prompt="a pluck", seconds=0.5, seed=3, sampler="pingpong", steps=3, cfg=1.0)
    torch.manual_seed(0)
    first = heard(model, clip)
    torch.manual_seed(1)
    assert torch.equal(*first, *heard(model, clip))


def test_generating_leaves_the_global_random_state_alone(model):
    before = torch.get_rng_state()
    heard(model, CLIP, adapters=(AdapterUse(file=BORA),))
    assert torch.equal(before, torch.get_rng_state())


def test_an_adapter_changes_the_sound(model):
    assert not torch.equal(*heard(model, CLIP), *heard(model, CLIP, adapters=(AdapterUse(file=BORA),)))


def test_an_adapter_of_strength_0_gives_the_sound_of_the_base(model):
    assert torch.equal(*heard(model, CLIP), *heard(model, CLIP, adapters=(AdapterUse(file=BORA, strength=0.0),)))


def test_several_adapters_act_together(model):
    both = heard(model, CLIP, adapters=(AdapterUse(file=BORA), AdapterUse(file=LORA)))
    assert not torch.equal(*both, *heard(model, CLIP, adapters=(AdapterUse(file=BORA),)))


def test_an_adapter_for_a_model_of_another_size_leaves_the_model_as_it_was(model, tmp_path):
    from safetensors.torch import load_file, save_file

    stored = load_file(LORA)
    name = sorted(stored)[0]
    save_file({**stored, name: stored[name][..., :-1].contiguous()}, tmp_path / "other.safetensors")
    before = heard(model, CLIP)
    with pytest.raises(AdapterMismatch):
        add_adapters(model, [AdapterUse(file=tmp_path / "other.safetensors")], print)
    assert torch.equal(*before, *heard(model, CLIP))


def test_an_adapter_that_is_not_there_is_refused(model, tmp_path):
    with pytest.raises(AdapterMismatch, match="no such file"):
        add_adapters(model, [AdapterUse(file=tmp_path / "none.safetensors")], print)


def test_what_is_advised_about_a_file_that_is_no_adapter_is_about_generating(model, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(
        AdapterMismatch, match=r"(?s)does not fit this model:.*Give --adapter the \.safetensors"
    ) as caught:
        add_adapters(model, [AdapterUse(file=tmp_path / "a.json")], print)
    assert "training" not in str(caught.value)


def test_an_adapter_that_was_trained_on_other_weights_is_said(model, tmp_path):
    from stages.adapters import adapter_file

    stored = adapter_file.read(LORA)
    adapter_file.write(
        tmp_path / "a.safetensors", stored.tensors, stored.spec, {"base_digest": "0" * 64, "base_model": "another"}
    )
    lines: list[str] = []
    for adapter in add_adapters(model, [AdapterUse(file=tmp_path / "a.safetensors")], lines.append):
        adapter.detach()
    assert len(lines) == 1
    assert "trained on another (00000000)" in lines[0]


def test_fixed_directions_are_those_of_the_stored_weights_in_any_precision():
    file = FAMILY / "adapters" / "lora-xs_r1.safetensors"
    bases = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(open_folder("medium-base", FAMILY), torch.device("cpu"), dtype)
        (adapter,) = add_adapters(model, [AdapterUse(file=file)], print)
        bases.append({name: value for each in adapter.attachments() for name, value in each.slot.named_buffers()})
    assert bases[0]
    assert all(torch.equal(value, bases[1][name]) for name, value in bases[0].items())
