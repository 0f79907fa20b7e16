"""Some generated sounds to listen to and to look at, beside the originals that their prompts describe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from stages.pretrain.transformer.figures import generated, heard
from stages.pretrain.transformer.generator import TrainedGenerator
from stages.pretrain.transformer.held_out import HeldOut

EXAMPLES = 12
HEARD_SAMPLES = 4 * SAMPLE_RATE_HZ
CFG = 3.0


def write_examples(
    generator: TrainedGenerator, autoencoder: Autoencoder, held: HeldOut, file: Path, steps: int = 50
) -> None:
    """Write an .npz: int16 arrays (clips, 2, X) `original`, `reconstruction`, `generated`, and the captions."""
    step = max(1, len(held.facts) // EXAMPLES)
    some = _rows(held, list(range(0, len(held.facts), step))[:EXAMPLES])
    latents_BCT, mask_BT = generated(generator, some, steps, CFG)
    arrays = {
        "original": some.audio_BAX,
        "reconstruction": heard(autoencoder, some.latents_BCT),
        "generated": heard(autoencoder, latents_BCT, mask_BT),
    }
    held_arrays: dict[str, Any] = {name: _int16(audio_BAX[..., :HEARD_SAMPLES]) for name, audio_BAX in arrays.items()}
    np.savez_compressed(file, captions=np.array(some.captions), seconds=some.seconds_B.cpu().numpy(), **held_arrays)


def _rows(held: HeldOut, rows: list[int]) -> HeldOut:
    return replace(
        held,
        audio_BAX=held.audio_BAX[rows],
        latents_BCT=held.latents_BCT[rows],
        facts=[held.facts[row] for row in rows],
        captions=[held.captions[row] for row in rows],
        ids_BP=held.ids_BP[rows],
        seconds_B=held.seconds_B[rows],
    )


def _int16(audio_BAX: Tensor) -> np.ndarray:
    return (audio_BAX.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy()
