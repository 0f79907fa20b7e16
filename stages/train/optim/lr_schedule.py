"""Learning rate and EMA weight of each step: functions of params and the step's number alone."""

from __future__ import annotations

import math

from stages.train.stage import TrainParams

INVERSE_GAMMA, INVERSE_POWER, INVERSE_WARMUP = 1e6, 0.5, 0.995
"""Constants of the reference's inverse schedule."""


def learning_rate(params: TrainParams, step: int) -> float:
    """Learning rate of one step, counted from 0; a resumed run needs no stored schedule."""
    after_warmup = max(step - params.warmup_steps, 0)
    return params.learning_rate * _warmup(params, step) * _SHAPES[params.schedule](params, after_warmup)


def _warmup(params: TrainParams, step: int) -> float:
    """Linear, reaching 1 in the last step of the warm-up."""
    return min((step + 1) / params.warmup_steps, 1.0) if params.warmup_steps else 1.0


def _constant(params: TrainParams, after_warmup: int) -> float:
    return 1.0


def _cosine(params: TrainParams, after_warmup: int) -> float:
    """Half a cosine over the steps after the warm-up: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5."""
    return 0.5 * (1 + math.cos(math.pi * after_warmup / (params.number_of_steps - params.warmup_steps)))


def _inverse(params: TrainParams, after_warmup: int) -> float:
    """(1 - 0.995^(n + 1)) (1 + n / 1e6)^-0.5: a short rise, unless a warm-up was asked for, then a slow decay."""
    rise = 1.0 if params.warmup_steps else 1 - INVERSE_WARMUP ** (after_warmup + 1)
    return float(rise * (1 + after_warmup / INVERSE_GAMMA) ** -INVERSE_POWER)


_SHAPES = {"constant": _constant, "cosine": _cosine, "inverse": _inverse}


def ema_weight(decay: float, step: int) -> float:
    """How much of the adapter after a step enters the average: 1 - min(decay, (1 + n) / (10 + n)), n counted from 0.

    Early averages are short, as the start would otherwise weigh decay^n in a training of n steps; 1 - decay later.
    """
    return 1 - min(decay, (1 + step) / (10 + step))
