"""Optimal transport coupling of noise and clips."""

from __future__ import annotations

from itertools import permutations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.dataset.ot_coupling import pairing, squared_distances, transport_plan


def batch(seed, size, frames=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, size, 4, frames, generator=generator).unbind()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), size=st.integers(1, 8))
def test_a_pairing_is_a_permutation(seed, size):
    latents, noise = batch(seed, size)
    assert sorted(pairing(latents, noise).tolist()) == list(range(size))


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(5)))
def test_noise_equal_to_a_clip_is_paired_with_it(order):
    latents, _ = batch(0, 5)
    noise = latents[torch.tensor(order)]
    assert torch.equal(noise[pairing(latents, noise)], latents)


def test_equal_noises_are_assigned_once_each():
    latents, noise = batch(3, 4)
    assert sorted(pairing(latents, noise[:1].expand(4, -1, -1)).tolist()) == [0, 1, 2, 3]


def test_pairs_are_closer_than_as_drawn_and_no_closer_than_the_optimum():
    as_drawn = paired = best = 0.0
    for seed in range(40):
        latents, noise = batch(seed, 4)
        cost = squared_distances(latents.flatten(1), noise.flatten(1))
        as_drawn += cost.trace().item()
        paired += cost[range(4), pairing(latents, noise)].sum().item()
        best += min(sum(cost[i, j].item() for i, j in enumerate(order)) for order in permutations(range(4)))
    assert best <= paired < as_drawn
    # Greedy rounding of the plan may miss the optimum, but not by much of what there is to gain.
    assert paired - best < 0.6 * (as_drawn - best)


def test_distances_are_those_between_flattened_items():
    latents, noise = batch(1, 3)
    expected = torch.stack([torch.stack([(x - e).square().sum() for e in noise]) for x in latents])
    torch.testing.assert_close(squared_distances(latents.flatten(1), noise.flatten(1)), expected, rtol=1e-4, atol=1e-4)


def test_a_transport_plan_is_doubly_stochastic():
    plan = transport_plan(squared_distances(torch.randn(5, 30), torch.randn(5, 30)))
    torch.testing.assert_close(plan.sum(0), torch.ones(5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plan.sum(1), torch.ones(5), rtol=1e-2, atol=1e-2)
