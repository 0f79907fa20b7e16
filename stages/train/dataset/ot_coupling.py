"""Optimal transport coupling: noise is assigned to clips within a batch so that pairs are close.

Straighter paths from noise to clip are easier to learn. Source: minibatch optimal transport (Tong et al. 2023,
arXiv:2302.00482), solved by Sinkhorn's iteration (Cuturi 2013, arXiv:1306.0895) and made one-to-one greedily.
"""

from __future__ import annotations

import torch
from torch import Tensor

# B clips, C latent channels, T frames; in cost_BB rows are clips and columns are noises.

SINKHORN_ITERATIONS = 20


def pairing(latents_BCT: Tensor, noise_BCT: Tensor) -> Tensor:
    """(B,) int64, a permutation: clip i goes with noise pairing[i].

    Costs are squared distances over all channels and frames, padding included, in float32. (The reference computes the
    product in bf16 under autocast; pairs whose costs are that close may then swap.)
    """
    plan_BB = transport_plan(squared_distances(latents_BCT.flatten(1), noise_BCT.flatten(1)))
    taken_B = torch.zeros(len(plan_BB), dtype=torch.bool, device=plan_BB.device)
    picked = []
    for row_B in plan_BB:
        # Indices stay tensors: reading one on the host would wait for the device.
        choice = row_B.masked_fill(taken_B, -1.0).argmax()
        taken_B = taken_B | (torch.arange(len(row_B), device=row_B.device) == choice)
        picked.append(choice)
    return torch.stack(picked)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """(B, B): |x_i - e_j|^2 of two (B, values) tensors."""
    squares_BB = left.square().sum(1)[:, None] + right.square().sum(1)[None, :]
    return squares_BB - 2 * left @ right.T


def transport_plan(cost_BB: Tensor, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """(B, B) nearly doubly stochastic: how much of each noise goes to each clip."""
    log_plan_BB = -cost_BB / cost_BB.mean()
    for _ in range(iterations):
        log_plan_BB = log_plan_BB - log_plan_BB.logsumexp(dim=1, keepdim=True)
        log_plan_BB = log_plan_BB - log_plan_BB.logsumexp(dim=0, keepdim=True)
    return log_plan_BB.exp()
