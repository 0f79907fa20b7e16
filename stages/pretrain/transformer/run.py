"""Trains the transformer for some seconds: `python -m stages.pretrain.transformer.run OUT --seconds 500`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch

from stages.pretrain.autoencoder.carried import CARRIED, carried_autoencoder
from stages.pretrain.captions.tokenizer import train_tokenizer
from stages.pretrain.clocked_run import ClockedRun
from stages.pretrain.judge import Judge, load_judge, save_judge, train_judge_for
from stages.pretrain.rate_schedule import recipe_with
from stages.pretrain.synthesis.synthesiser import Synthesiser
from stages.pretrain.transformer.architecture import conditioning_config, diffusion_config
from stages.pretrain.transformer.checkpoint import load_weights, restore, save, save_weights, stored_tokenizer
from stages.pretrain.transformer.figures import GRID, figures
from stages.pretrain.transformer.held_out import held_out, held_out_loss
from stages.pretrain.transformer.listening import write_examples
from stages.pretrain.transformer.pool import LatentPool
from stages.pretrain.transformer.prompts import PromptWriter, prompt
from stages.pretrain.transformer.recipe import TransformerRecipe
from stages.pretrain.transformer.step import TransformerStep

STEPS_IN_FLIGHT = 10
_TOKENIZER_SEED, _TOKENIZER_SOUNDS, _TOKENIZER_PROMPTS = 7, 3000, 6


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the arguments say; see the module."""
    options = parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    Run(options, recipe_with(TransformerRecipe(), options.set)).go()


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("out", type=Path, help="folder of the checkpoint, the weights, the text encoder and the figures")
    made.add_argument("--name", default="transformer")
    made.add_argument("--seconds", type=float, required=True, help="wall clock of the training steps")
    made.add_argument(
        "--start", type=Path, help="weights (.safetensors, text_encoder/ beside) or checkpoint to go on from"
    )
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help="fields of the recipe or the shape")
    made.add_argument("--autoencoder", type=Path, default=CARRIED, help="weights of the frozen autoencoder")
    made.add_argument("--judge", type=Path, help="weights of the judge; trained and written there where missing")
    made.add_argument("--judge-seconds", type=float, default=60.0)
    made.add_argument("--pool", type=int, default=240_000, help="encoded sounds held when all are made")
    made.add_argument("--first", type=int, default=16_384, help="of these, made before training begins")
    made.add_argument("--first-seconds", type=float, default=60.0, help="at most spent on them")
    made.add_argument("--part", type=int, default=2048, help="sounds made at a time")
    made.add_argument("--pool-share", type=float, default=0.2, help="share of the time spent on making sounds")
    made.add_argument("--processes", type=int, default=6, help="that write prompts")
    made.add_argument("--held-out", type=int, default=416, help="sounds and prompts to judge by")
    made.add_argument(
        "--grid", type=json.loads, default=GRID, help="steps and guidance to judge, as JSON [[50, 3], ...]"
    )
    made.add_argument("--most-steps", type=int, help="stop and schedule by steps instead of seconds")
    return made


def captions_tokenizer(vocabulary: int) -> str:
    """The tokenizer of captions of sounds of a fixed seed, the same in every run."""
    batch = Synthesiser("cpu", _TOKENIZER_SEED)
    random = Random(_TOKENIZER_SEED)
    facts = [fact for _ in range(_TOKENIZER_SOUNDS // 500) for fact in batch.batch(500, 2048).facts]
    return train_tokenizer((prompt(fact, random) for fact in facts for _ in range(_TOKENIZER_PROMPTS)), vocabulary)


class Run(ClockedRun):
    """One training by the clock, reported, saved and judged."""

    seconds_between_checkpoints = 90.0

    def __init__(self, options: argparse.Namespace, recipe: TransformerRecipe) -> None:
        self.options, self.recipe = options, recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.began = time.monotonic()
        self.num_steps, self.pool_seconds = 0, 0.0
        self.random = Random(recipe.seed)
        self.history: list[dict[str, Any]] = []
        self.autoencoder = carried_autoencoder(self.device, options.autoencoder)
        self.tokenizer_json = self._tokenizer()
        self.writer = PromptWriter(self.tokenizer_json, 1_000_000 * recipe.seed, options.processes)
        self.pool = LatentPool(
            recipe.lengths,
            self.autoencoder,
            self.writer,
            self.device,
            recipe.seed + 1,
            num_sounds=options.pool,
            part_size=options.part,
        )
        self._first_sounds()
        self.held = held_out(self.autoencoder, self.tokenizer_json, self.device, options.held_out)
        self.step = TransformerStep(recipe, self.pool.shelves, self.device)
        if options.start:
            self._start_from(options.start)
        self.log(f"{self._sizes()}; ready")

    def log(self, line: str) -> None:
        """Print a line at once, with the name of the run and the seconds since its start."""
        print(f"[{self.options.name} {time.monotonic() - self.began:.0f} s] {line}", flush=True)

    def _tokenizer(self) -> str:
        start: Path | None = self.options.start
        if start is not None:
            return stored_tokenizer(start)
        return captions_tokenizer(self.recipe.shape.vocabulary)

    def _judge(self) -> Judge:
        file: Path = self.options.judge
        if not file.exists():
            judge = train_judge_for(self.options.judge_seconds, self.device)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_judge(judge, file)
            self.log("judge trained")
        return load_judge(file, self.device)

    def _first_sounds(self) -> None:
        before = time.monotonic()
        self.pool.fill(self.options.first, self.options.first_seconds)
        seconds = time.monotonic() - before
        shelves = " ".join(f"{shelf.length.frames}:{shelf.held}" for shelf in self.pool.shelves)
        std = float(self.pool.shelves[0].latents_NCT[: self.pool.shelves[0].held].float().std())
        self.log(f"{self.pool.held} sounds in {seconds:.1f} s ({shelves}), latents' deviation {std:.3f}")

    def _sizes(self) -> str:
        generator = self.step.generator
        parts = {
            "transformer": generator.denoiser,
            "conditioner": generator.conditioner,
            "text encoder": generator.text_encoder,
        }
        sizes = {name: sum(value.numel() for value in part.state_dict().values()) for name, part in parts.items()}
        return ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in sizes.items())

    def _start_from(self, file: Path) -> None:
        if file.suffix == ".safetensors":
            load_weights(self.step, file)
        else:
            self.num_steps = restore(self.step, file)

    def go(self) -> None:
        """Train, save, judge."""
        self.train()
        self.writer.close()
        self.save()
        self.write(self.about())
        self.write({**self.about(), "figures": self.judged()})

    def one_step(self, elapsed: float, done: int) -> None:
        """A step at the rate of this moment."""
        share = self.share(elapsed, done)
        self.step.optimizer.set_rate(self.recipe.rate_at(share, done))
        lengths = range(len(self.recipe.lengths))
        (length,) = self.random.choices(lengths, [one.step_share for one in self.recipe.lengths])
        self.step(length)
        self.num_steps += 1
        if self.num_steps % STEPS_IN_FLIGHT == 0:
            self._wait()
            if self.pool_seconds < self.options.pool_share * elapsed:
                self._grow()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _grow(self) -> None:
        before = time.monotonic()
        self.pool.grow()
        self._wait()
        self.pool_seconds += time.monotonic() - before

    def report(self, elapsed: float, done: int) -> None:
        """Print and keep the loss, in training and on held-out sounds."""
        self.step.average.swap()
        held = held_out_loss(self.step.generator, self.held)
        self.step.average.swap()
        terms = self.step.terms()
        self.history.append({"seconds": round(elapsed, 1), "step": self.num_steps, **terms, "held_out": held})
        worst = sorted(held.items(), key=lambda item: -item[1])[:4]
        self.log(
            f"{elapsed:.0f} s step {self.num_steps} {done / elapsed:.1f}/s sounds {self.pool.made} in "
            f"{self.pool_seconds:.0f} s loss {terms['loss']:.4f} |g| {terms['gradient norm']:.2f} held out "
            f"{held['all']:.4f} worst " + " ".join(f"{name} {value:.2f}" for name, value in worst)
        )

    def save(self) -> None:
        """Write the weights, the text encoder and the checkpoint."""
        save_weights(self.step, self.tokenizer_json, self.options.out / f"{self.options.name}.safetensors")
        save(self.step, self.num_steps, self.options.out / f"{self.options.name}.checkpoint")

    def about(self) -> dict[str, Any]:
        """The run, and the sections of the config that its weights belong to."""
        sections = {
            "conditioning": conditioning_config(self.recipe.shape),
            "diffusion": diffusion_config(self.recipe.shape),
        }
        about = {"recipe": asdict(self.recipe), "steps": self.num_steps, "sounds": self.pool.made}
        return {**about, "config": sections, "history": self.history}

    def write(self, content: dict[str, Any]) -> None:
        """Write the figures."""
        file = self.options.out / f"{self.options.name}.json"
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @torch.no_grad()
    def judged(self) -> dict[str, Any]:
        """Figures of the averaged weights, and sounds to listen to."""
        self.step.average.swap()
        steps = max((steps for steps, _ in self.options.grid), default=50)
        write_examples(
            self.step.generator,
            self.autoencoder,
            self.held,
            self.options.out / f"{self.options.name}.examples.npz",
            steps,
        )
        found: dict[str, Any] = {}
        if self.options.judge:
            found = figures(
                self.step.generator, self.autoencoder, self._judge(), self.held, self.options.grid, self.log
            )
        self.step.average.swap()
        return found


if __name__ == "__main__":
    main()
