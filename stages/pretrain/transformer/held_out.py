"""Sounds and prompts of a seed that training does not use, and the loss on them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import DOWNSAMPLING_RATIO
from stages.pretrain.autoencoder.carried import encoded
from stages.pretrain.captions.caption import caption
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.synthesis.synthesiser import FAMILIES, Synthesiser
from stages.pretrain.transformer.batch import FRAMES_PER_SECOND, TrainingBatch, batch_losses
from stages.pretrain.transformer.generator import TrainedGenerator, padded_ids
from stages.pretrain.transformer.pool import TRAINED_TOKENS

HELD_OUT_SEED = 424_242
TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""As in the product's evaluation."""
CONTENT_FRAMES, FRAMES = 72, 128
"""Sounds of up to 6.7 s; the loss is over that, and silence behind it."""
LOOPS_WEIGH = 2
"""Drum loops, whose tempo is judged, are so many times as often as the other families."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out sounds with one caption each."""

    audio_BAX: Tensor
    latents_BCT: Tensor
    """float32."""
    facts: list[SoundFacts]
    captions: list[str]
    ids_BP: Tensor
    seconds_B: Tensor


def held_out(autoencoder: Autoencoder, tokenizer_json: str, device: torch.device, num_sounds: int) -> HeldOut:
    """Some sounds of every family in turn."""
    from tokenizers import Tokenizer

    synthesiser, random = Synthesiser(device, HELD_OUT_SEED), Random(HELD_OUT_SEED)
    names = [*FAMILIES, *["drum loop"] * (LOOPS_WEIGH - 1)]
    counts = dict.fromkeys(FAMILIES, 0)
    for number in range(num_sounds):
        counts[names[number % len(names)]] += 1
    samples = CONTENT_FRAMES * DOWNSAMPLING_RATIO
    batches = [synthesiser.batch(count, samples, [name]) for name, count in counts.items() if count]
    facts = [fact for batch in batches for fact in batch.facts]
    audio_BAX = torch.cat([batch.audio_BAX for batch in batches])
    captions = [caption(fact, random) for fact in facts]
    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids_BP = padded_ids([encoding.ids for encoding in tokenizer.encode_batch(captions)], TRAINED_TOKENS)
    return HeldOut(
        audio_BAX=audio_BAX,
        latents_BCT=encoded(autoencoder, audio_BAX, FRAMES).float(),
        facts=facts,
        captions=captions,
        ids_BP=ids_BP.to(device),
        seconds_B=torch.tensor([fact.seconds for fact in facts], device=device),
    )


@torch.no_grad()
def held_out_loss(generator: TrainedGenerator, held: HeldOut) -> dict[str, float]:
    """Mean loss over timesteps, of each family and of the mean of families (`all`); no prompt is withheld."""
    per_clip_B = torch.stack([_at(generator, held, timestep) for timestep in TIMESTEPS]).mean(dim=0).cpu()
    families = [fact.family for fact in held.facts]
    found = {
        name: float(per_clip_B[[place for place, family in enumerate(families) if family == name]].mean())
        for name in dict.fromkeys(families)
    }
    return {"all": sum(found.values()) / len(found), **found}


def _at(generator: TrainedGenerator, held: HeldOut, timestep: float) -> Tensor:
    device, size = held.latents_BCT.device, len(held.facts)
    noise = torch.randn(held.latents_BCT.shape, generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    # Silence of a second behind each sound counts, as much as sounds themselves mostly take.
    real_B = (held.seconds_B * FRAMES_PER_SECOND).ceil() + 10
    none = torch.zeros(size, FRAMES, dtype=torch.bool, device=device)
    batch = TrainingBatch(
        latents_BCT=held.latents_BCT,
        noise_BCT=noise.to(device),
        timestep_B=torch.full((size,), timestep, device=device),
        real_BT=torch.arange(FRAMES, device=device) < real_B[:, None],
        given_BT=none,
        dropped_B=none[:, 0],
        seconds_total_B=held.seconds_B,
        ids_BP=held.ids_BP,
    )
    return batch_losses(generator, batch).generated_B
