"""What generated sounds are: their family, note and tempo, and whether they end when they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.guidance import Guidance, guided_velocity
from stages.models.nets.dit.samplers import euler, generation_frames, generation_mask, sampling_schedule
from stages.pretrain.autoencoder.architecture import DOWNSAMPLING_RATIO, SAMPLE_RATE_HZ
from stages.pretrain.autoencoder.carried import decoded
from stages.pretrain.captions.phrases import FLATS, SHARPS, note_name
from stages.pretrain.judge import Judge
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.tempo import follows, tempos
from stages.pretrain.transformer.generator import TrainedGenerator, autocast
from stages.pretrain.transformer.held_out import CONTENT_FRAMES, HELD_OUT_SEED, HeldOut

JUDGED_SAMPLES = CONTENT_FRAMES * DOWNSAMPLING_RATIO
_CLIPS_AT_A_TIME = 104
_TAIL_SECONDS = 0.15
"""After the duration, before what sounds counts as too late."""

Row = dict[str, Any]


@torch.no_grad()
def generated(generator: TrainedGenerator, held: HeldOut, steps: int, cfg: float) -> tuple[Tensor, Tensor]:
    """Latents (B, C, T) by the product's sampler with Euler steps, and their padding mask (B, T)."""
    device, seconds = held.seconds_B.device, held.seconds_B.tolist()
    rates = (SAMPLE_RATE_HZ, DOWNSAMPLING_RATIO)
    # An even number of frames; the autoencoder takes whole chunks of four.
    num_frames = -(-generation_frames(seconds, *rates, 2**30) // 4) * 4
    mask_BT = generation_mask(seconds, num_frames, *rates).to(device)
    shape = (len(seconds), generator.shape.latent_channels, num_frames)
    noise_BCT = torch.randn(shape, generator=torch.Generator().manual_seed(HELD_OUT_SEED)).to(device)
    with autocast(device):
        conditioning = generator.conditioning(held.ids_BP, held.seconds_B)
    schedule = sampling_schedule(steps, torch.full((len(seconds),), num_frames, device=device))
    parts = [
        _sampled(generator, noise_BCT[rows], schedule[rows], _rows(conditioning, rows), mask_BT[rows], cfg)
        for rows in (slice(at, at + _CLIPS_AT_A_TIME) for at in range(0, len(seconds), _CLIPS_AT_A_TIME))
    ]
    return torch.cat(parts), mask_BT


def _rows(conditioning: Conditioning, rows: slice) -> Conditioning:
    return Conditioning(conditioning.context_BSE[rows], conditioning.global_BE[rows])


def _sampled(
    generator: TrainedGenerator,
    noise_BCT: Tensor,
    schedule: Tensor,
    conditioning: Conditioning,
    mask_BT: Tensor,
    cfg: float,
) -> Tensor:
    def velocity(noised_BCT: Tensor, timestep_B: Tensor) -> Tensor:
        with autocast(noised_BCT.device):
            return guided_velocity(
                generator.denoiser,
                noised_BCT,
                timestep_B,
                conditioning,
                Guidance(scale=cfg),
                padding_mask_BT=mask_BT,
            ).float()

    return euler(velocity, noise_BCT, schedule)


def heard(autoencoder: Autoencoder, latents_BCT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Audio (B, 2, X) of latents, silent where the mask is False."""
    audio_BAX = decoded(autoencoder, latents_BCT)
    if mask_BT is not None:
        audio_BAX = audio_BAX * mask_BT.repeat_interleave(DOWNSAMPLING_RATIO, dim=1)[:, None]
    return audio_BAX.clamp(-1, 1)


def row(judge: Judge, audio_BAX: Tensor, held: HeldOut) -> Row:
    """Figures of sounds that should be what the held-out captions say."""
    sounding_BX = _sounding(held.seconds_B, audio_BAX.shape[-1], 0.0)
    cut_BAX = (audio_BAX * sounding_BX[:, None])[..., :JUDGED_SAMPLES]
    verdicts = [one for part in cut_BAX.split(_CLIPS_AT_A_TIME) for one in judge.verdicts(part)]
    is_family = [family == fact.family for (family, _), fact in zip(verdicts, held.facts, strict=True)]
    return {
        "family": _mean(is_family),
        **_notes([note for _, note in verdicts], held),
        **_tempo(cut_BAX, held),
        "tail_db": _tail_db(audio_BAX, held.seconds_B),
        "families": _by_family(is_family, held.facts),
        "heard_as": _confusions([family for family, _ in verdicts], held.facts),
    }


def _sounding(seconds_B: Tensor, num_samples: int, further: float) -> Tensor:
    return torch.arange(num_samples, device=seconds_B.device) < (seconds_B[:, None] + further) * SAMPLE_RATE_HZ


def _mean(values: list[bool]) -> float:
    return round(sum(values) / len(values), 4) if values else float("nan")


def _by_family(right: list[bool], facts: list[SoundFacts]) -> dict[str, float]:
    families = dict.fromkeys(fact.family for fact in facts)
    return {
        name: _mean([one for one, fact in zip(right, facts, strict=True) if fact.family == name]) for name in families
    }


def _confusions(names: list[str], facts: list[SoundFacts]) -> dict[str, int]:
    """How often a family was heard as another, the most frequent first."""
    found: dict[str, int] = {}
    for name, fact in zip(names, facts, strict=True):
        if name != fact.family:
            pair = f"{fact.family} -> {name}"
            found[pair] = found.get(pair, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1])[:20])


def names_note(text: str, note: int) -> bool:
    """Whether a caption names a note with its octave."""
    return any(note_name(note, names) in text for names in (SHARPS, FLATS))


def _notes(found: list[int], held: HeldOut) -> Row:
    """Accuracy of notes: of all that have one, of those that the caption names, and their pitch class."""
    noted = [(place, fact.note) for place, fact in enumerate(held.facts) if fact.note is not None]
    named = [(place, note) for place, note in noted if names_note(held.captions[place], note)]
    return {
        "note": _mean([found[place] == note for place, note in named]),
        "note_class": _mean([(found[place] - note) % 12 == 0 for place, note in named]),
        "note_any": _mean([found[place] == note for place, note in noted]),
        "notes_named": len(named),
        "notes": _by_family([found[place] == note for place, note in named], [held.facts[place] for place, _ in named]),
    }


def _tempo(audio_BAX: Tensor, held: HeldOut) -> Row:
    """Share of the loops at the tempo that their caption names."""
    wanted = [
        (place, fact.tempo_bpm)
        for place, fact in enumerate(held.facts)
        if fact.family == "drum loop" and fact.tempo_bpm is not None and str(fact.tempo_bpm) in held.captions[place]
    ]
    if not wanted:
        return {}
    found_B = tempos(audio_BAX[[place for place, _ in wanted]])
    exact, octave = follows(found_B, torch.tensor([bpm for _, bpm in wanted], device=found_B.device))
    return {"tempo": round(exact, 4), "tempo_octave": round(octave, 4), "tempos_named": len(wanted)}


def _tail_db(audio_BAX: Tensor, seconds_B: Tensor) -> float:
    """Power behind the durations relative to the power within, in dB, of all sounds together."""
    late_BX = ~_sounding(seconds_B, audio_BAX.shape[-1], _TAIL_SECONDS)
    within_BX = _sounding(seconds_B, audio_BAX.shape[-1], 0.0)
    power_BX = audio_BAX.square().mean(dim=1)
    late = (power_BX * late_BX).sum() / late_BX.sum().clamp(min=1)
    within = (power_BX * within_BX).sum() / within_BX.sum()
    return round(float(10 * torch.log10((late / within.clamp(min=1e-12)).clamp(min=1e-12))), 1)


Grid = tuple[tuple[int, float], ...]
GRID: Grid = ((50, 1.0), (50, 2.0), (50, 3.0), (50, 4.0), (50, 7.0), (20, 1.0), (20, 2.0), (20, 3.0), (20, 4.0))
"""Steps and guidance."""


def figures(
    generator: TrainedGenerator,
    autoencoder: Autoencoder,
    judge: Judge,
    held: HeldOut,
    grid: Grid = GRID,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Row]:
    """Figures of originals, of their reconstructions and of generated sounds."""
    found = {
        "originals": row(judge, held.audio_BAX, held),
        "reconstructions": row(judge, heard(autoencoder, held.latents_BCT), held),
    }
    for steps, cfg in grid:
        latents_BCT, mask_BT = generated(generator, held, steps, cfg)
        found[f"{steps} steps, cfg {cfg:g}"] = {
            **row(judge, heard(autoencoder, latents_BCT, mask_BT), held),
            "latents_std": round(float(latents_BCT[..., :CONTENT_FRAMES].std()), 3),
        }
    for name, one in found.items():
        say(f"{name}: " + " ".join(f"{key} {value}" for key, value in one.items() if not isinstance(value, dict)))
    return found
