"""The speed that a training reports."""

from __future__ import annotations

import pytest

from stages.contract import Resources
from stages.train.record.step_rate import WINDOW, StepRate
from tests.small_training import Bench


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_is_said_before_a_step_after_the_first_is_measured(clock):
    rate = StepRate(clock)
    assert rate.steps_per_second is None
    clock.now += 40
    rate.measure(1, 0.0)
    assert rate.steps_per_second is None


def test_the_first_step_does_not_count_however_long_it_took(clock):
    rate = StepRate(clock)
    clock.now += 40
    rate.measure(1, 0.0)
    clock.now += 2
    rate.measure(2, 0.0)
    assert rate.steps_per_second == pytest.approx(0.5)


def test_the_first_step_of_a_training_that_goes_on_does_not_count_either(clock):
    rate = StepRate(clock)
    clock.now += 40
    rate.measure(501, 0.0)
    clock.now += 10
    rate.measure(601, 0.0)
    assert rate.steps_per_second == pytest.approx(10)


def test_time_spent_in_preparing_steps_is_left_out(clock):
    rate = StepRate(clock)
    rate.measure(1, 5.0)
    clock.now += 1
    rate.measure(2, 5.0)
    clock.now += 61
    rate.measure(3, 65.0)
    assert rate.steps_per_second == pytest.approx(1)


def test_only_recent_steps_count(clock):
    rate = StepRate(clock)
    for step in range(1, 200):
        clock.now += 100 if step < 199 - WINDOW else 0.5
        rate.measure(step, 0.0)
    assert rate.steps_per_second == pytest.approx(2)


def test_progress_of_a_training_tells_the_speed_from_the_second_step_on(tmp_path):
    bench = Bench.of_latents(tmp_path, lengths=(12, 20))
    bench.resources = Resources(device="cpu", log_every=1)
    bench.train(number_of_steps=3)
    assert ["steps_per_second" in figures for _, _, figures in bench.told] == [False, True, True]
