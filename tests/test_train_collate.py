"""The batch of a step: crops, silence, noise, timesteps and masks, all from seed and step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.dataset.clips import ClipEntry
from stages.train.dataset.collate import batch_of_step, extended_with_silence
from stages.train.dataset.prompt_embeddings import PromptEmbeddings
from stages.train.dataset.sampler import sampler_for
from stages.train.rng import StepRng
from stages.train.stage import TrainParams

CHANNELS = 2


@dataclass
class CountedClips:
    """Clips whose latents name clip and frame: channel 0 is the clip's number, channel 1 the frame; silence is -1."""

    lengths: list[int]
    window: int
    flips: bool = False
    seconds: float = 10.0
    samples_per_unit: int = 4096
    samples_per_frame: int = 4096
    sample_rate_hz: int = 44_100
    reads: list[tuple[int, int, bool]] = field(default_factory=list)

    @property
    def sizes(self):
        return np.array(self.lengths)

    @property
    def window_samples(self):
        return self.window * self.samples_per_unit

    @property
    def entries(self):
        return [
            ClipEntry(clip_id=f"clip{n}", prompt_key=f"prompt{n}", seconds_total=self.seconds + n, size=length)
            for n, length in enumerate(self.lengths)
        ]

    @property
    def silence_CT(self):
        return torch.full((CHANNELS, 3), -1.0) - torch.arange(3)

    def read(self, index, start, flipped):
        self.reads.append((index, start, flipped))
        frames = torch.arange(start, min(start + self.window, self.lengths[index])).float()
        return torch.stack([torch.full_like(frames, index), frames])


def prompts_of(clips):
    return PromptEmbeddings({entry.prompt_key: torch.full((n + 1, 4), n) for n, entry in enumerate(clips.entries)})


def unshifted(timestep_B, num_frames_B):
    return timestep_B


def batch(clips, step=0, shift=unshifted, seed=1, **changes):
    params = TrainParams(model="tiny-base", **{"batch_size": 3, "seed": seed, **changes})
    order = sampler_for(clips, params, StepRng(seed))
    return batch_of_step(step, clips, prompts_of(clips), order, params, StepRng(seed), shift)


def test_a_batch_larger_than_the_dataset_holds_clips_more_than_once():
    made = batch(CountedClips([5, 6], window=6), batch_size=5)
    assert Counter(made.clip_ids).keys() == {"clip0", "clip1"}
    assert made.latents_BCT.shape[0] == 5


def test_one_clip_makes_every_batch():
    clips = CountedClips([5], window=5)
    assert [batch(clips, step, batch_size=1).clip_ids for step in range(3)] == [("clip0",)] * 3


def test_a_batch_is_made_of_its_own_clips():
    made = batch(CountedClips([5, 6, 7, 8], window=8))
    for row, clip_id in enumerate(made.clip_ids):
        number = int(clip_id.removeprefix("clip"))
        assert made.latents_BCT[row, 0, 0] == number
        assert made.seconds_total_B[row] == 10 + number
        assert torch.equal(made.hidden[row], torch.full((number + 1, 4), number))


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), window=st.integers(1, 60), step=st.integers(0, 50))
def test_a_batch_is_as_long_as_its_longest_item_needs_and_never_above_the_window(lengths, window, step):
    made = batch(CountedClips(lengths, window), step)
    num_frames = made.latents_BCT.shape[-1]
    ends = made.real_BT.sum(dim=1)
    excerpts = [min(window, lengths[int(clip_id.removeprefix("clip"))]) for clip_id in made.clip_ids]
    assert num_frames == ends.max() <= window
    assert all(end >= excerpt for end, excerpt in zip(ends.tolist(), excerpts, strict=True))
    assert torch.equal(made.real_BT, torch.arange(num_frames) < ends[:, None])
    assert made.all_real == bool(made.real_BT.all())
    assert not (made.given_BT & ~made.real_BT).any()


def test_without_extension_an_item_ends_with_its_clip():
    made = batch(CountedClips([5, 9, 7], window=30), silence_extension_seconds=0.0)
    assert sorted(made.real_BT.sum(dim=1).tolist()) == [5, 7, 9]


def test_a_longer_extension_makes_longer_batches():
    lengths = [batch(CountedClips([5], window=10_000), step, batch_size=1).latents_BCT.shape[-1] for step in range(200)]
    assert min(lengths) >= 5
    # mean of floor(exponential of mean 43.07) is 42.57
    assert 30 < sum(lengths) / len(lengths) - 5 < 60


def test_a_clip_is_followed_by_the_first_frames_of_silence_then_its_last_two_in_turn():
    behind = extended_with_silence(torch.zeros(CHANNELS, 2), torch.tensor([[1.0, 2.0, 3.0]] * CHANNELS), 9)
    assert behind[0].tolist() == [0, 0, 1, 2, 3, 2, 3, 2, 3]
    assert extended_with_silence(torch.zeros(CHANNELS, 2), torch.ones(CHANNELS, 3), 2).tolist() == [[0, 0]] * CHANNELS


def test_a_clip_longer_than_the_window_is_cropped_at_a_random_place():
    clips = CountedClips([50], window=10)
    starts = set()
    for step in range(300):
        made = batch(clips, step, batch_size=1)
        start = int(made.latents_BCT[0, 1, 0])
        assert made.crop_starts == (start * 4096,)
        assert made.latents_BCT[0, 1].tolist() == list(range(start, start + 10))
        starts.add(start)
    assert {0, 40} <= starts <= set(range(41))


def test_signs_are_flipped_for_half_of_the_clips_where_that_is_possible():
    clips = CountedClips([5], window=5, flips=True)
    for step in range(200):
        batch(clips, step, batch_size=1)
    assert 70 < sum(flipped for _, _, flipped in clips.reads) < 130


@pytest.mark.parametrize(("flips", "wanted"), [(False, True), (True, False)])
def test_signs_are_kept_where_flipping_is_impossible_or_unwanted(flips, wanted):
    clips = CountedClips([5], window=5, flips=flips)
    for step in range(20):
        batch(clips, step, batch_size=1, polarity_flip=wanted)
    assert not any(flipped for _, _, flipped in clips.reads)


def test_timesteps_are_shifted_for_the_length_of_the_whole_recording():
    asked = []

    def recording(timestep_B, num_frames_B):
        asked.append(num_frames_B.tolist())
        return timestep_B / 2

    clips = CountedClips([5], window=5, seconds=47)
    shifted, plain = batch(clips, shift=recording, batch_size=1), batch(clips, batch_size=1)
    assert asked == [[507]]
    assert torch.equal(shifted.timestep_B, plain.timestep_B / 2)


def test_the_conditioning_duration_is_the_whole_recording_s_or_the_crop_s_if_asked():
    asked = []

    def recording(timestep_B, num_frames_B):
        asked.append(num_frames_B.tolist())
        return timestep_B

    clips = CountedClips([100, 5], window=20, seconds=47)
    whole, own = (batch(clips, shift=recording, batch_size=2, crop_seconds=wanted) for wanted in (False, True))
    order = [int(clip_id.removeprefix("clip")) for clip_id in own.clip_ids]
    assert whole.seconds_total_B.tolist() == [47 + number for number in order]
    # 20 frames round up to two seconds, 5 to one; the shift of timesteps follows the same duration.
    assert own.seconds_total_B.tolist() == [(2, 1)[number] for number in order]
    assert asked[1] == [(22, 11)[number] for number in order]


def test_a_clip_longer_than_the_window_is_cropped_anew_at_every_visit():
    clips = CountedClips([5000, 5], window=10)
    seen = [batch(clips, step, batch_size=1, crops_per_clip=4) for step in range(5)]
    assert sorted(made.clip_ids[0] for made in seen) == ["clip0"] * 4 + ["clip1"]
    assert len({made.crop_starts[0] for made in seen if made.clip_ids == ("clip0",)}) == 4


def test_a_step_of_several_microbatches_is_the_larger_batch():
    clips = CountedClips([5, 60, 9, 30, 25, 14, 50, 6, 8, 40], window=60)
    for step in range(6):
        divided = batch(clips, step, batch_size=2, gradient_accumulation=2)
        whole = batch(clips, step, batch_size=4)
        assert (divided.microbatch_sizes, whole.microbatch_sizes) == ((2, 2), (4,))
        for name in ("latents_BCT", "noise_BCT", "timestep_B", "real_BT", "given_BT", "dropped_B"):
            assert torch.equal(getattr(divided, name), getattr(whole, name))
        assert divided.clip_ids == whole.clip_ids


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    budget=st.integers(1, 400),
    parts=st.integers(1, 3),
    step=st.integers(0, 50),
)
def test_a_frame_budget_batch_is_real_for_the_frames_it_was_sampled_by(lengths, budget, parts, step):
    clips = CountedClips(lengths, window=max(lengths))
    changes = {"batch_size": 1, "frames_per_batch": budget, "gradient_accumulation": parts}
    made = batch(clips, step, **changes)
    params = TrainParams(model="tiny-base", seed=1, **changes)
    visits = sampler_for(clips, params, StepRng(1)).visits(step)
    assert made.real_BT.sum(dim=1).tolist() == visits.frames_B.tolist()
    assert made.microbatch_sizes == visits.microbatch_sizes
    ends = [sum(made.microbatch_sizes[: place + 1]) for place in range(parts)]
    for count, end in zip(made.microbatch_sizes, ends, strict=True):
        assert count == 1 or count * int(made.real_BT[end - count : end].sum(dim=1).max()) <= budget


def test_prompts_are_withheld_as_often_as_asked():
    clips = CountedClips([5], window=5)
    dropped = [batch(clips, step, batch_size=4, cfg_dropout_prob=0.25).dropped_B for step in range(200)]
    assert abs(torch.stack(dropped).float().mean().item() - 0.25) < 0.08
    assert batch(clips, cfg_dropout_prob=1.0).dropped_B.all()


def test_a_batch_made_again_is_the_same_and_another_seed_gives_another():
    clips = CountedClips([5, 6, 7], window=7)
    first, again, other = batch(clips, 9), batch(clips, 9), batch(clips, 9, seed=2)
    assert torch.equal(first.noise_BCT, again.noise_BCT)
    assert torch.equal(first.timestep_B, again.timestep_B)
    assert not torch.equal(first.timestep_B, other.timestep_B)


def test_a_batch_of_samples_has_the_frames_of_the_batch_of_frames():
    in_frames = CountedClips([10], window=8)
    in_samples = CountedClips([10 * 4096 - 1], window=8 * 4096 - 100, samples_per_unit=1)
    in_samples.read = lambda index, start, flipped: torch.zeros(CHANNELS, 8)
    assert batch(in_frames, batch_size=1).real_BT.shape == batch(in_samples, batch_size=1).real_BT.shape == (1, 8)
