"""What fits a machine before there is any data."""

from __future__ import annotations

import pytest
import torch

from stages import catalogue
from stages.train.forecast import fitting as module
from stages.train.forecast.fitting import fitting

GIB = 1 << 30
MEDIUM, SMALL = (catalogue.models()[name] for name in ("medium-base", "small-music-base"))


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    """A CUDA device that is not there, and computes in bf16."""
    monkeypatch.setattr(module, "usable_dtype", lambda wanted, device, say: wanted)


def found(spec, gib: float):
    return fitting(spec, torch.device("cuda"), int(gib * GIB))


def test_nothing_fits_into_nothing():
    assert (found(MEDIUM, 0.5).seconds, found(MEDIUM, 0.5).checkpointed_seconds, found(MEDIUM, 0.5).kinds) == (0, 0, ())


def test_much_memory_holds_the_full_length_with_any_kind():
    best = found(MEDIUM, 130)
    assert best.seconds == best.checkpointed_seconds == MEDIUM.max_seconds
    assert best.kinds == tuple(catalogue.adapter_kinds())


def test_more_memory_never_means_less_length_and_recomputing_never_shortens():
    lengths = [found(MEDIUM, gib) for gib in (4, 6, 8, 12, 16, 24)]
    assert [one.seconds for one in lengths] == sorted(one.seconds for one in lengths)
    assert all(one.seconds <= one.checkpointed_seconds <= MEDIUM.max_seconds for one in lengths)


def test_a_small_model_fits_where_a_large_one_does_not():
    assert found(SMALL, 4).checkpointed_seconds > 0
    assert found(SMALL, 4).seconds >= found(MEDIUM, 4).seconds
