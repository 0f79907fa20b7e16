"""The number of CPU threads that a training uses."""

from __future__ import annotations

import pytest

from stages.models.device import training_threads


@pytest.mark.parametrize(("asked", "width", "threads"), [(0, 128, 1), (2, 128, 2), (0, 1536, 0), (4, 1536, 4)])
def test_a_narrow_network_trains_on_one_thread_by_default(asked, width, threads):
    assert training_threads(asked, width) == threads
