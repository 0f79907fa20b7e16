"""The autoencoder: patches, independence of clips in a batch, chunks, noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UnsupportedModelConfig
from stages.models.nets.autoencoder.autoencoder import Autoencoder, DecodeNoise
from stages.models.nets.autoencoder.chunking import chunks
from tests.small_networks import config, randomised

RATIO = 4096
SAME = 2e-5
"""Two ways to compute the same latents (of size about 1) in float32."""


@pytest.fixture(scope="module", params=[False, True], ids=["chunked attention", "sliding window"])
def autoencoder(request):
    return randomised(Autoencoder(config(windowed=request.param)))


def clip(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, num_samples, generator=torch.Generator().manual_seed(seed)) / 4


@pytest.mark.parametrize("num_samples", [1, 4096, 13_671])
def test_a_clip_is_encoded_as_if_followed_by_endless_silence(autoencoder, num_samples):
    audio = clip(num_samples)
    num_frames = -(-num_samples // RATIO)
    long_recording = torch.zeros(1, 2, 30 * RATIO)
    long_recording[0, :, :num_samples] = audio

    latents = autoencoder.encode_clip(audio)

    assert latents.shape == (autoencoder.latent_channels, num_frames)
    torch.testing.assert_close(latents, autoencoder.encode(long_recording)[0, :, :num_frames], atol=SAME, rtol=0)


def test_a_clip_encoded_without_silence_after_it_has_other_latents(autoencoder):
    audio = clip(3 * RATIO + 77)
    alone = autoencoder.encode(audio[None])[0, :, :4]
    assert (autoencoder.encode_clip(audio) - alone).abs().max() > 1e-3


def test_a_clips_latents_do_not_depend_on_its_neighbours_in_the_batch(autoencoder):
    audio = clip(2 * RATIO + 5)
    first = autoencoder.encode_clips([audio, clip(6 * RATIO, 1)])[0]
    second = autoencoder.encode_clips([audio, clip(6 * RATIO, 2)])[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, autoencoder.encode_clip(audio), atol=SAME, rtol=0)


def test_encoding_in_chunks_equals_encoding_whole(autoencoder):
    audio = clip(30 * RATIO + 9)
    (pieces,) = autoencoder.encode_clips([audio], chunk_frames=40)
    torch.testing.assert_close(pieces, autoencoder.encode_clip(audio), atol=SAME, rtol=0)


def test_chunks_not_longer_than_their_overlap_are_refused(autoencoder):
    with pytest.raises(ValueError, match="chunk_frames must be above 32"):
        autoencoder.encode_clips([clip(RATIO)], chunk_frames=32)


def test_patches_are_channel_major_and_invertible(autoencoder):
    audio = torch.arange(2 * 600, dtype=torch.float32).view(1, 2, 600)
    patches = autoencoder.patched(audio)
    assert patches.shape == (1, 512, 3)
    assert patches[0, 3, 1] == audio[0, 0, 256 + 3]
    assert patches[0, 256 + 3, 1] == audio[0, 1, 256 + 3]
    assert torch.equal(autoencoder.unpatched(patches)[..., :600], audio)


def test_lengths_are_rounded_up_to_whole_attention_chunks():
    chunked, windowed = (Autoencoder(config(windowed=windowed)) for windowed in (False, True))
    five = clip(5 * RATIO)[None]
    assert chunked.encode(five).shape[-1] == 6
    assert windowed.encode(five).shape[-1] == 5
    assert chunked.decode(torch.zeros(1, 16, 5)).shape[-1] == 6 * RATIO
    assert chunked.decode_chunked(torch.zeros(1, 16, 13), 6, 2).shape[-1] == 13 * RATIO


def test_encoding_and_decoding_are_deterministic_by_default(autoencoder):
    latents, drawn = torch.randn(1, 16, 4), DecodeNoise(bottleneck="draw", tokens="draw")
    assert torch.equal(autoencoder.decode(latents), autoencoder.decode(latents))
    assert not torch.equal(autoencoder.decode(latents, drawn), autoencoder.decode(latents))


def test_noise_from_a_generator_is_reproducible(autoencoder):
    latents = torch.randn(1, 16, 4)
    first, second = (
        autoencoder.decode(latents, DecodeNoise(torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_noise_of_another_shape_is_refused(autoencoder):
    with pytest.raises(ValueError, match=r"noise must have shape \(1, 16, 4\)"):
        autoencoder.decode(torch.randn(1, 16, 4), DecodeNoise(bottleneck=torch.randn(1, 16, 5)))


def test_the_last_decoder_layers_have_sine_gates_one_fewer_than_the_option_says():
    read = config()
    read["model"]["pretransform"]["config"]["decoder"]["config"]["sinusoidal_blocks"] = [3]
    layers = Autoencoder(read).decoder.layers["3"].transformers
    assert [layer.ff.ff[0].activation.__name__ for layer in layers] == ["silu", "silu", "sine", "sine"]


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("encoder", "dyt", False),
        ("encoder", "chunk_size", 40),
        ("encoder", "strides", [4, 4]),
        ("decoder", "layer_scale", True),
        ("bottleneck", "noise_augment_dim", 4),
    ],
)
def test_an_unsupported_option_is_refused_by_name(section, option, value):
    read = config()
    read["model"]["pretransform"]["config"][section]["config"][option] = value
    with pytest.raises(UnsupportedModelConfig, match=option):
        Autoencoder(read)


def test_an_unknown_option_that_is_off_is_accepted():
    read = config()
    read["model"]["pretransform"]["config"]["encoder"]["config"]["layer_scale"] = False
    assert Autoencoder(read).state_dict().keys() == Autoencoder(config()).state_dict().keys()


sizes = {"chunk": st.integers(1, 40), "data": st.data()}


@given(total=st.integers(1, 400), **sizes)
@settings(max_examples=150, deadline=None)
def test_chunks_cover_every_frame_and_stay_inside(total, chunk, data):
    overlap = data.draw(st.integers(0, chunk - 1))
    total = max(total, chunk)
    written = [frame.destination + local for frame in chunks(total, 1, chunk, overlap) for local in frame.kept]
    assert set(written) == set(range(total))


@given(extra=st.integers(0, 7), frames=st.integers(1, 400), **sizes)
@settings(max_examples=150, deadline=None)
def test_a_chunk_off_the_grid_is_only_the_last_and_ends_with_the_signal(extra, frames, chunk, data):
    overlap, unit = data.draw(st.integers(0, chunk - 1)), 8
    total = max(frames, chunk) * unit + extra
    made = chunks(total, unit, chunk, overlap)
    assert all(one.start % unit == 0 and one.destination == one.start // unit for one in made[:-1])
    assert made[-1].start + chunk * unit == total
    assert made[-1].destination + chunk == total // unit
    assert [one.start for one in made] == sorted({one.start for one in made})


def test_inner_edges_lose_half_the_overlap_and_the_outer_ones_nothing():
    made = chunks(150, 1, 128, 32)
    assert [(one.start, one.kept, one.destination) for one in made] == [
        (0, range(0, 112), 0),
        (22, range(16, 128), 22),
    ]


def test_joined_chunks_of_a_local_function_equal_the_whole(autoencoder, monkeypatch):
    frames = lambda audio: audio.unflatten(-1, (-1, RATIO)).mean(dim=(1, 3))[:, None].expand(-1, 16, -1)  # noqa: E731
    monkeypatch.setattr(type(autoencoder), "encode", lambda self, audio, noise=None: frames(audio))
    audio = clip(29 * RATIO)[None]
    torch.testing.assert_close(autoencoder.encode_chunked(audio, 6, 2), frames(audio))


def test_a_signal_of_exactly_one_chunk_is_encoded_as_one(autoencoder):
    audio = clip(6 * RATIO)[None]
    assert torch.equal(autoencoder.encode_chunked(audio, 6, 2), autoencoder.encode(audio))
