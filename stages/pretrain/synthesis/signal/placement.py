"""Where a sound stands: stereo width, position, room, level, and silence behind its end."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ, RenderContext
from stages.pretrain.synthesis.signal.envelopes import DECAY_60_DB, decay, ending
from stages.pretrain.synthesis.signal.filtered_noise import convolved, filtered, frequencies

_LONGEST_ROOM_SECONDS = 3.0
_DECORRELATION_SAMPLES = 512


def placed(context: RenderContext, dry_BAX: Tensor, seconds_B1: Tensor) -> Tensor:
    """(B, 2, X) the sound in its place, finished; tells pan, width, room, seconds and peak.

    Args:
        dry_BAX: one channel, or two: the sound and a decorrelated twin of it.
        seconds_B1: where the dry sound ends.
    """
    width_B1, pan_B1 = _width_and_pan(context)
    stereo_BAX = panned(widened(context, dry_BAX, width_B1), pan_B1)
    room_B1 = context.coin(0.45) * context.log_uniform(0.25, 2.5)
    wet_B1 = context.uniform(0.15, 0.5)
    stereo_BAX = _in_room(context, stereo_BAX, room_B1, wet_B1)
    end_B1 = (seconds_B1 + 0.7 * room_B1).clamp_max(context.window_seconds)
    fade_B1 = (0.2 * end_B1).clamp_max(0.03) + 0.15 * room_B1 * (room_B1 > 0)
    stereo_BAX = stereo_BAX * ending(context.time_X, end_B1, fade_B1.minimum(0.5 * end_B1))[:, None]
    peak_B1 = context.log_uniform(0.1, 0.9)
    loudest_B1 = stereo_BAX.abs().amax(dim=(1, 2))[:, None].clamp_min(1e-9)
    context.tell(pan=pan_B1, width=width_B1, room_seconds=room_B1, seconds=end_B1, peak=peak_B1)
    return stereo_BAX * (peak_B1 / loudest_B1)[:, None]


def _width_and_pan(context: RenderContext) -> tuple[Tensor, Tensor]:
    """Wide sounds stay near the middle, those at a side are narrow."""
    wide_B1 = context.coin(0.45)
    width_B1 = wide_B1 * context.uniform(0.25, 1.0)
    aside_B1 = (1 - wide_B1) * context.coin(0.55)
    return width_B1, aside_B1 * context.uniform(-1.0, 1.0) + (1 - aside_B1) * context.uniform(-0.08, 0.08)


def widened(context: RenderContext, dry_BAX: Tensor, width_B1: Tensor) -> Tensor:
    """Middle and side of equal energy at width 1: then left and right are uncorrelated."""
    middle_B1X = dry_BAX[:, :1]
    twin_B1X = dry_BAX[:, 1:] if dry_BAX.shape[1] == 2 else _decorrelated(context, middle_B1X)
    angle_B11 = width_B1[:, :, None] * (math.pi / 4)
    middle_B1X, side_B1X = middle_B1X * torch.cos(angle_B11), twin_B1X * torch.sin(angle_B11)
    return torch.cat([middle_B1X + side_B1X, middle_B1X - side_B1X], dim=1)


def _decorrelated(context: RenderContext, audio_B1X: Tensor) -> Tensor:
    """The sound through some 10 ms of noise, which keeps its spectrum on average and changes its phases."""
    taps = _DECORRELATION_SAMPLES
    noise_B1X = context.white_noise(audio_B1X.shape[0], 1, taps)
    noise_B1X = noise_B1X * torch.exp(-torch.arange(taps, device=audio_B1X.device) / (taps / 4))
    twin_B1X = convolved(audio_B1X, noise_B1X)
    energy = audio_B1X.square().sum(dim=-1, keepdim=True) / twin_B1X.square().sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return twin_B1X * energy.sqrt()


def panned(stereo_BAX: Tensor, pan_B1: Tensor) -> Tensor:
    """Equal-power position: at -1 the right channel is silent."""
    angle_B1 = (pan_B1 + 1) * (math.pi / 4)
    gain_BA = torch.cat([torch.cos(angle_B1), torch.sin(angle_B1)], dim=1) * math.sqrt(2)
    return stereo_BAX * gain_BA[:, :, None]


def _in_room(context: RenderContext, stereo_BAX: Tensor, room_B1: Tensor, wet_B1: Tensor) -> Tensor:
    """With a tail of decaying noise, duller the longer it is; clips with room 0 stay as they are."""
    length = min(context.num_samples, round(_LONGEST_ROOM_SECONDS * SAMPLE_RATE_HZ))
    tail_BAX = context.white_noise(context.num_clips, 2, length)
    inside_B = (room_B1[:, 0] > 0).cpu().nonzero()[:, 0].to(context.device)
    if inside_B.numel() == 0:
        return stereo_BAX
    room_B1, wet_B11 = room_B1[inside_B], wet_B1[inside_B][:, :, None]
    dull_BF = 1 / (1 + (frequencies(length, context.device) / (9000 - 2000 * room_B1)) ** 2)
    tail_BAX = filtered(tail_BAX[inside_B], dull_BF[:, None]) * decay(context.time_X[:length], room_B1)[:, None]
    tail_BAX = F.normalize(tail_BAX, dim=-1) / math.sqrt(2)
    dry_BAX = stereo_BAX[inside_B]
    wet_BAX = convolved(dry_BAX.mean(dim=1, keepdim=True), tail_BAX)
    loudness = _rms(dry_BAX) / _rms(wet_BAX).clamp_min(1e-9)
    return stereo_BAX.index_copy(0, inside_B, dry_BAX + wet_B11 * loudness * wet_BAX)


def _rms(audio_BAX: Tensor) -> Tensor:
    return audio_BAX.square().mean(dim=(1, 2), keepdim=True).sqrt()


def rate_of_decay(seconds_B1: Tensor) -> Tensor:
    """Rate r of exp(-r t) that falls by 60 dB in the seconds given."""
    return DECAY_60_DB / seconds_B1
