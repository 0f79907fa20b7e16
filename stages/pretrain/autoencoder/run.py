"""Trains the autoencoder for some seconds: `python -m stages.pretrain.autoencoder.run OUT --seconds 600`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from stages.pretrain.autoencoder.checkpoint import load_weights, restore, save, save_weights
from stages.pretrain.autoencoder.figures import Rows, baselines, figures
from stages.pretrain.autoencoder.recipe import Recipe
from stages.pretrain.autoencoder.sounds import SoundPool
from stages.pretrain.autoencoder.step import TrainingStep
from stages.pretrain.clocked_run import ClockedRun
from stages.pretrain.rate_schedule import recipe_with
from stages.pretrain.synthesis.synthesiser import Synthesiser

HELD_OUT_SEED = 424_242
STEPS_IN_FLIGHT = 10

Judged = tuple[Tensor, Tensor, list[str]]
"""Audio (B, 2, X), seconds that sound, families."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the arguments say; see the module."""
    options = parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    Run(options, recipe_with(Recipe(), options.set)).go()


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("out", type=Path, help="folder of the checkpoint, the weights and the figures")
    made.add_argument("--name", default="autoencoder")
    made.add_argument("--seconds", type=float, required=True, help="wall clock of the training steps")
    made.add_argument("--start", type=Path, help="weights (.safetensors) or checkpoint to go on from")
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help="fields of Recipe or Shape")
    made.add_argument("--real", type=Path, help="recordings to judge by (.npz), never trained on")
    made.add_argument("--pool", type=int, default=1024, help="sounds held at a time")
    made.add_argument("--reuse", type=int, default=100, help="batches after which an eighth of them is made anew")
    made.add_argument("--varied", action="store_true", help="equalise and mix the sounds at random")
    made.add_argument("--recorded", action="store_true", help="speed, drive and a noise floor at random")
    made.add_argument("--held-out", type=int, default=208, help="synthesised sounds to judge by")
    made.add_argument("--most-steps", type=int, help="stop and schedule by steps instead of seconds")
    return made


class Run(ClockedRun):
    """One training by the clock, reported, saved and judged."""

    def __init__(self, options: argparse.Namespace, recipe: Recipe) -> None:
        self.options, self.recipe = options, recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        began = time.monotonic()
        self.step = TrainingStep(recipe, self.device)
        self.num_steps, self.synthesis_seconds = 0, 0.0
        if options.start:
            self._start_from(options.start)
        self.log(f"{sum(p.numel() for p in self.step.trainee.autoencoder.parameters()) / 1e6:.2f} M parameters")
        self.pool = SoundPool(
            self.device,
            recipe.seed + 1,
            num_sounds=options.pool,
            num_parts=min(8, options.pool),
            batches_per_part=options.reuse,
            varied=options.varied,
            recorded=options.recorded,
        )
        self.log(f"ready after {time.monotonic() - began:.1f} s")
        self.history: list[dict[str, Any]] = []

    def log(self, line: str) -> None:
        """Print a line at once, with the name of the run."""
        print(f"[{self.options.name}] {line}", flush=True)

    def _start_from(self, file: Path) -> None:
        if file.suffix == ".safetensors":
            load_weights(self.step, file)
        else:
            self.num_steps = restore(self.step, file)

    def go(self) -> None:
        """Train, save, judge; weights to start from are judged too."""
        sets = self._judged_sets()
        before = self._figures(sets) if self.options.start else {}
        self.train()
        self.save()
        result = self.judged(sets) | {"before": before}
        (self.options.out / f"{self.options.name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        self.log("done " + json.dumps({name: rows["all"] for name, rows in result["figures"].items()}))

    def one_step(self, elapsed: float, done: int) -> None:
        """A step at the rate of this moment."""
        share = self.share(elapsed, done)
        self.step.optimizer.set_rate(self.recipe.rate_at(share, done))
        self.step.waveform_weight.fill_(self.recipe.waveform_at(share))
        self.step.adversarial_weight.fill_(self.recipe.adversarial_at(share))
        before = time.monotonic()
        self.step.audio_BAX.copy_(self.pool.crops(self.recipe.batch_size, self.step.audio_BAX.shape[-1]))
        self.synthesis_seconds += time.monotonic() - before
        self.step()
        self.num_steps += 1
        if self.num_steps % STEPS_IN_FLIGHT == 0 and self.device.type == "cuda":
            torch.cuda.synchronize()

    def report(self, elapsed: float, done: int) -> None:
        """Print and keep the running means of the loss's terms."""
        terms = self.step.terms()
        self.history.append({"seconds": round(elapsed, 1), "step": self.num_steps, **terms})
        short = " ".join(f"{name} {value:.3f}" for name, value in terms.items() if value)
        self.log(
            f"{elapsed:.0f} s step {self.num_steps} {done / elapsed:.1f}/s feed {self.synthesis_seconds:.1f} s {short}"
        )

    def save(self) -> None:
        """Write the weights and the checkpoint."""
        save_weights(self.step, self.options.out / f"{self.options.name}.safetensors")
        save(self.step, self.num_steps, self.options.out / f"{self.options.name}.checkpoint")

    def _judged_sets(self) -> dict[str, Judged]:
        sets = {"synthetic": held_out(self.device, self.options.held_out)}
        return sets | recordings(self.options.real, self.device) if self.options.real else sets

    def _figures(self, sets: dict[str, Judged]) -> dict[str, Rows]:
        return {name: figures(self._made(one[0]), *one) for name, one in sets.items()}

    @torch.no_grad()
    def judged(self, sets: dict[str, Judged]) -> dict[str, Any]:
        """Figures of the averaged weights on held-out sounds and on recordings."""
        self.step.average.swap()
        found = self._figures(sets)
        scale = self._latent_scale(sets["synthetic"][0])
        self.step.average.swap()
        floors = {name: baselines(*one) for name, one in sets.items()}
        about = {"recipe": asdict(self.recipe), "steps": self.num_steps, "history": self.history}
        return {**about, "figures": found, "baselines": floors, "latents": scale}

    def _latent_scale(self, audio_BAX: Tensor) -> dict[str, float]:
        """Standard deviation of the latents, as a whole and of channels, and what is largest in them."""
        trainee = self.step.trainee
        latents = torch.cat([trainee.latents(trainee.features(batch)) for batch in audio_BAX.split(16)])
        channels = latents.std(dim=(0, 2))
        scale = {"std": float(latents.std()), "least": float(channels.min()), "most": float(channels.max())}
        return {**scale, "largest": float(latents.abs().max()), "mean": float(latents.mean(dim=(0, 2)).abs().max())}

    def _made(self, audio_BAX: Tensor) -> Tensor:
        return torch.cat([self.step.trainee.round_trip(batch) for batch in audio_BAX.split(16)])


def held_out(device: torch.device, num_sounds: int) -> Judged:
    """Sounds of a seed that training does not use."""
    num_samples = 32 * 4096
    batch = Synthesiser(device, HELD_OUT_SEED).batch(num_sounds, num_samples)
    seconds = torch.tensor([fact.seconds for fact in batch.facts], device=device)
    return batch.audio_BAX, seconds.clamp(0.05, num_samples / SAMPLE_RATE_HZ), [fact.family for fact in batch.facts]


def recordings(file: Path, device: torch.device) -> dict[str, Judged]:
    """Sets of recordings: arrays (clips, 2, X) of int16 in an .npz, each by its name."""
    import numpy as np

    sets: dict[str, Judged] = {}
    for name, values in np.load(file).items():
        audio = torch.from_numpy(values.astype("float32") / 32768).to(device)
        audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % 8192))
        loud = (audio.abs().amax(dim=1) > 1e-3).long()
        last = loud.shape[-1] - loud.flip(-1).argmax(dim=-1)
        sets[f"real {name}"] = (audio, (last / SAMPLE_RATE_HZ).clamp(min=0.1), [])
    return sets


if __name__ == "__main__":
    main()
