"""Metrics: rows per clip and step, and windows of losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.dataset.examples import Examples
from stages.train.determinism import deterministic_algorithms
from stages.train.model.evaluation import MAX_CLIPS, TIMESTEPS, fixed_batches
from stages.train.record.metrics import MetricsHistory, window_means
from stages.train.stage import TrainParams
from tests.test_train_collate import CountedClips, prompts_of


def load_examples(clips) -> Examples:
    return Examples(
        clips=clips, prompts=prompts_of(clips), params=TrainParams(model="tiny-base", seed=0), shift_options=None
    )


def noted(*losses, norm=1.0):
    history = MetricsHistory.empty()
    for loss in losses:
        history.append(torch.tensor([[0.5], [loss], [0.0]]), torch.tensor(norm))
    return history


@settings(deadline=None, max_examples=60)
@given(losses=st.lists(st.floats(0, 10), min_size=1, max_size=80), window=st.integers(1, 60))
def test_window_means_are_means_of_consecutive_losses(losses, window):
    width = min(window, len(losses))
    expected = [np.mean(losses[start : start + width]) for start in range(len(losses) - width + 1)]
    np.testing.assert_allclose(window_means(np.array(losses), window), expected, atol=1e-9)


def test_metrics_stay_on_the_device_until_they_are_flushed():
    history = noted(1.0, 2.0)
    assert len(history.gradient_norms) == 0
    history.flush()
    assert history.losses(1.0).tolist() == [1.0, 2.0]
    assert history.losses(1.0, last=1).tolist() == [2.0]


@pytest.mark.parametrize(
    ("losses", "norm", "expected"),
    [((1.0, float("nan"), float("inf")), 1.0, (1, "loss")), ((1.0,), float("inf"), (0, "gradient"))],
)
def test_the_first_non_finite_step_is_found_with_what_was_not_finite(losses, norm, expected):
    history = noted(*losses, norm=norm)
    history.flush()
    assert history.first_non_finite() == expected


def test_a_truncated_history_ends_there():
    history = noted(1.0, 2.0, 3.0)
    history.flush()
    history.truncate(2)
    assert history.losses(1.0).tolist() == [1.0, 2.0]
    assert len(history.gradient_norms) == 2


def test_the_evaluation_takes_every_clip_of_a_small_dataset_at_every_timestep():
    clips = CountedClips([5, 6, 7], window=6)
    made = list(fixed_batches(load_examples(clips)))
    assert [batch.clip_ids for batch in made] == [(f"clip{n}",) * 5 for n in range(3)]
    for batch, frames in zip(made, (5, 6, 6), strict=True):
        torch.testing.assert_close(batch.timestep_B, torch.tensor(TIMESTEPS))
        assert batch.latents_BCT.shape == batch.noise_BCT.shape == (5, 2, frames)
        assert batch.real_BT.all()
        assert not batch.given_BT.any()
        assert not batch.dropped_B.any()


def test_the_evaluation_takes_no_more_of_a_large_dataset():
    clips = CountedClips([5] * 100, window=5)
    ids = [batch.clip_ids[0] for batch in fixed_batches(load_examples(clips))]
    assert len(set(ids)) == MAX_CLIPS
    assert ids[-1] == "clip93"


def test_the_evaluation_has_the_same_noise_every_time():
    clips = CountedClips([5], window=5)
    first, second = (next(fixed_batches(load_examples(clips))) for _ in range(2))
    assert torch.equal(first.noise_BCT, second.noise_BCT)


def test_on_cuda_sums_are_taken_in_a_fixed_order_and_only_inside(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with deterministic_algorithms(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == filled


def test_the_cpu_needs_no_such_switch():
    with deterministic_algorithms(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
