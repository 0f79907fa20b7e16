"""Learning rate and EMA weight of each step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.optim.lr_schedule import ema_weight, learning_rate
from stages.train.stage import SCHEDULES, TrainParams


def rates(count, **changes):
    params = TrainParams(model="tiny-base", **{"number_of_steps": count, "learning_rate": 1e-3, **changes})
    return [learning_rate(params, step) for step in range(count)]


def test_a_constant_rate_is_the_one_asked_for_at_every_step():
    assert rates(5) == [1e-3] * 5


def test_a_warm_up_rises_linearly_and_reaches_the_full_rate_in_its_last_step():
    assert rates(6, warmup_steps=4) == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_a_cosine_falls_from_the_full_rate_to_almost_nothing():
    assert rates(4, schedule="cosine") == pytest.approx(
        [1e-3 * 0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4)]
    )


def test_a_cosine_begins_where_the_warm_up_ends():
    found = rates(12, schedule="cosine", warmup_steps=4)
    assert found[3] == found[4] == pytest.approx(1e-3)
    assert found[8] == pytest.approx(0.5e-3)


def test_an_inverse_schedule_is_the_reference_s():
    """lr_n = lr (1 - 0.995^(n + 1)) (1 + n / 1e6)^-0.5."""
    assert rates(3, schedule="inverse") == pytest.approx(
        [1e-3 * (1 - 0.995 ** (n + 1)) * (1 + n / 1e6) ** -0.5 for n in range(3)], rel=1e-12
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_of_any_schedule_ends_at_the_full_rate(schedule):
    assert rates(200, schedule=schedule, warmup_steps=100)[99] == pytest.approx(1e-3)


@settings(deadline=None, max_examples=60)
@given(schedule=st.sampled_from(SCHEDULES), warmup=st.integers(0, 20), count=st.integers(21, 60))
def test_no_rate_is_above_the_one_asked_for_or_below_zero(schedule, warmup, count):
    assert all(0 <= rate <= 1e-3 for rate in rates(count, schedule=schedule, warmup_steps=warmup))


@settings(deadline=None, max_examples=60)
@given(schedule=st.sampled_from(["constant", "inverse"]), warmup=st.integers(0, 9), more=st.integers(0, 50))
def test_the_rates_of_a_longer_training_begin_with_those_of_a_shorter_one(schedule, warmup, more):
    assert rates(10 + more, schedule=schedule, warmup_steps=warmup)[:10] == rates(
        10, schedule=schedule, warmup_steps=warmup
    )


def test_the_ema_begins_short_and_ends_at_its_decay():
    assert [ema_weight(0.99, step) for step in (0, 1)] == [0.9, 1 - 2 / 11]
    assert ema_weight(0.99, 5000) == pytest.approx(0.01)
