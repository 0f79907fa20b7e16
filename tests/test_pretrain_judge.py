"""The judge of generated sounds: it learns families and notes from renders."""

from __future__ import annotations

import math

import torch

from stages.pretrain.judge import CLASSES, Judge, accuracy, judge_loss, log_spectrum, train_judge
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ
from stages.pretrain.synthesis.synthesiser import Synthesiser


def test_a_few_steps_teach_the_difference_of_kick_and_hat():
    judge = train_judge(Synthesiser(seed=1), 8, num_clips=6, num_samples=8192, families=["kick", "hat"])
    unheard = Synthesiser(seed=2).batch(8, 8192, ["kick", "hat"])
    assert accuracy(judge, unheard.audio_BAX, unheard.facts).family == 1.0


def test_training_again_gives_the_same_judge():
    one, other = (train_judge(Synthesiser(seed=1), 1, num_clips=2, num_samples=8192) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_tone_is_strongest_at_its_own_frequency():
    time_X = torch.arange(22_050) / SAMPLE_RATE_HZ
    tone_BAX = torch.sin(2 * math.pi * 480 * time_X).expand(1, 2, -1)
    middle_Q = log_spectrum(tone_BAX)[0, 0].mean(dim=1)
    assert int(middle_Q.argmax()) == 4 * 24  # four octaves above 30 Hz


def test_sounds_without_a_note_train_the_family_alone():
    batch = Synthesiser(seed=2).batch(2, 8192, ["rain"])
    assert torch.isfinite(judge_loss(Judge(), batch))


def test_accuracy_counts_families_and_the_notes_that_there_are():
    class Certain(Judge):
        def verdicts(self, audio_BAX):
            return [("kick", 50), ("pluck", 60), ("pluck", 61)]

    facts = [SoundFacts(family=name, seconds=1, peak=0.5, note=note)
             for name, note in (("kick", None), ("pluck", 60), ("bell", 60))]  # fmt: skip
    found = accuracy(Certain(), torch.zeros(3, 2, 8), facts)
    assert (found.family, found.note) == (2 / 3, 1 / 2)


def test_a_sound_without_any_note_has_no_accuracy_of_notes():
    facts = [SoundFacts(family=CLASSES[0], seconds=1, peak=0.5)]
    assert math.isnan(accuracy(Judge(), torch.zeros(1, 2, 8192), facts).note)
