"""Whether adapters learn a style: its dataset, trainings on it, what is heard with them. For a test and a benchmark.

Everything goes through the product: ingest and encode by its runner, steps by its stepper, adapter files, `generate`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from pipeline.example_style import StyleClip, style_clips
from pipeline.execution.runner import run_until
from pipeline.report import Report
from pipeline.request.recipe import Recipe, read_recipe
from pipeline.request.resolve import resolve_inputs
from stages.adapters import adapter_file
from stages.adapters.singular_vectors import SingularVectorFolder
from stages.contract import Artifact, Inputs, Resources, Weights, Workspace
from stages.generate.adapted_model import LoadedModel, add_adapters, load_model
from stages.generate.sampling import generate
from stages.generate.settings import AdapterUse, Generation
from stages.judge.style_distance import WAYS, clip_vectors, style_distances
from stages.models.device import dtype_named, pick_device, set_threads, training_threads
from stages.pretrain.captions.caption import caption
from stages.pretrain.synthesis.synthesiser import Synthesiser
from stages.records import AdapterSpec
from stages.train.cuda_graph.stepper import Stepper
from stages.train.dataset.examples import Examples, load_examples
from stages.train.dataset.length_buckets import length_buckets_for
from stages.train.determinism import deterministic_algorithms
from stages.train.job import Job
from stages.train.model.evaluation import evaluate
from stages.train.model.network import Network
from stages.train.output.adapter_files import adapter_metadata
from stages.train.setup import new_training
from stages.train.stage import TrainParams

RATE_HZ = 44_100
TRAIN_SEED, HELD_OUT_SEED = 0, 1
PLAIN_SEED, OTHERS_SEED = 2, 3
SORTS = NAMED, SAME_WORDS, OTHERS = "named", "same words", "others"
"""Prompts: with the style's name; the same without it; of any other sounds."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much there is to learn from, and to judge by."""

    clips: int = 24
    """Of the style, in the dataset."""
    plain: int = 0
    """Sounds of the base model's own synthesiser in the dataset, captioned without the style's name."""
    held_out: int = 24
    """Of the style, to compare with and to take prompts from; as many prompts of other sounds."""
    seconds: float = 5.0


@dataclass(frozen=True)
class Sound:
    """A clip and its caption."""

    audio_AX: np.ndarray
    caption: str


def style_sounds(clips: Sequence[StyleClip], seconds: float) -> list[Sound]:
    """Rendered clips of the style, captioned with its name."""
    audio = [clip.synth(None, seconds, RATE_HZ).T for clip in clips]
    return [Sound(0.7 * one / np.abs(one).max(), clip.caption) for one, clip in zip(audio, clips, strict=True)]


def plain_sounds(count: int, seconds: float, seed: int) -> list[Sound]:
    """Sounds of the kinds that the base model was trained on."""
    batch, random = Synthesiser(seed=seed).batch(count, round(seconds * RATE_HZ)), Random(seed)
    audio = batch.audio_BAX.numpy()
    return [Sound(one, caption(facts, random)) for one, facts in zip(audio, batch.facts, strict=True)]


def write_sounds(folder: Path, sounds: Sequence[Sound]) -> Path:
    """A dataset folder: WAV files, and captions beside them."""
    folder.mkdir(parents=True)
    for number, sound in enumerate(sounds):
        content = io.BytesIO()
        soundfile.write(content, sound.audio_AX.T, RATE_HZ, format="WAV", subtype="PCM_24")
        (folder / f"{number:03d}.wav").write_bytes(content.getvalue())
        (folder / f"{number:03d}.txt").write_text(sound.caption, encoding="utf-8")
    return folder


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Encoded clips of the style: those to learn from, and those that no training sees."""

    root: Path
    sizes: Sizes
    weights: Weights
    train: Artifact
    held_out: Artifact

    @property
    def shared(self) -> Path:
        """Latents, prompts and other files that artifacts share."""
        return self.root / "store" / "shared"

    @cached_property
    def held_out_clips(self) -> list[StyleClip]:
        return held_out_clips(self.sizes)

    @cached_property
    def wanted_BAX(self) -> Tensor:
        """Audio of the held-out clips."""
        sounds = style_sounds(self.held_out_clips, self.sizes.seconds)
        return torch.from_numpy(np.stack([sound.audio_AX for sound in sounds])).float()

    @cached_property
    def prompts(self) -> Mapping[str, list[str]]:
        """Prompts that no training saw, for NAMED, SAME_WORDS and OTHERS."""
        others = plain_sounds(self.sizes.held_out, 1.0, OTHERS_SEED)
        return {
            NAMED: [clip.caption for clip in self.held_out_clips],
            SAME_WORDS: [clip.plain_caption for clip in self.held_out_clips],
            OTHERS: [sound.caption for sound in others],
        }


def held_out_clips(sizes: Sizes) -> list[StyleClip]:
    """Clips of the style, none with a caption that is trained on."""
    trained = {clip.caption for clip in style_clips(sizes.clips, TRAIN_SEED)}
    drawn = style_clips(2 * sizes.held_out, HELD_OUT_SEED)
    return [clip for clip in drawn if clip.caption not in trained][: sizes.held_out]


class Silent(Report):
    """A run's observer that prints nothing."""

    def say(self, line: str) -> None:
        pass

    def _draw(self, line: str, *, due: bool) -> None:
        pass


def dataset(root: Path, sizes: Sizes, weights: Path | None = None, device: str = "auto") -> Dataset:
    """Write, ingest and encode both datasets; tiny-base's own weights unless others of its layout are given."""
    style = style_sounds(style_clips(sizes.clips, TRAIN_SEED), sizes.seconds)
    plain = plain_sounds(sizes.plain, sizes.seconds, PLAIN_SEED) if sizes.plain else []
    train = write_sounds(root / "train", [*style, *plain])
    held_out = style_sounds(held_out_clips(sizes), sizes.seconds)
    recipes = [
        _recipe(folder, root / "store", weights, device)
        for folder in (train, write_sounds(root / "held-out", held_out))
    ]
    found = resolve_inputs(recipes[0], fetch=True).weights
    assert found is not None, "fetching finds the weights or raises"
    encoded = [run_until("encode", recipe, Silent()).artifacts["encode"] for recipe in recipes]
    return Dataset(root=root, sizes=sizes, weights=found, train=encoded[0], held_out=encoded[1])


def _recipe(data: Path, store: Path, weights: Path | None, device: str) -> Recipe:
    flags = {"model": "tiny-base", "store": str(store), "device": device, "weights": weights and str(weights)}
    flags |= {"workers": "1"}
    return read_recipe(str(data), flags)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """An adapter after some steps; losses are those of `stages.train.model.evaluation`, on fixed noise."""

    step: int
    file: Path
    train_losses: tuple[float, float]
    held_out_losses: tuple[float, float]
    """Before the first step and now."""
    seconds: float
    """Of all steps so far, with compiling."""


def train(
    data: Dataset, folder: Path, marks: Sequence[int], device: str, fast_path: str = "auto", **params: Any
) -> list[Learned]:
    """Train one adapter, and write it as a file at each of the marks.

    Args:
        marks: ascending numbers of steps.
        params: fields of `TrainParams`.
    """
    job = _job(data, data.train, folder, device, number_of_steps=marks[-1], **params)
    examples = load_examples(job), load_examples(_job(data, data.held_out, folder, device, **params))
    training = new_training(job)
    with threads_of_a_training(job), deterministic_algorithms(job.device, job.params.deterministic):
        before, states = _losses(training.network, examples, job.device), []
        buckets = length_buckets_for(examples[0].clips)
        training.network.train(True)
        started = time.perf_counter()
        with Stepper(training, buckets, data.shared / "compiled", print, wanted=fast_path != "off") as stepper:
            while training.step < marks[-1]:
                stepper.advance(examples[0].batch(training.step))
                if training.step in marks:
                    states.append((training.network.adapter.state(), time.perf_counter() - started))
        learned, spec = [], training.network.adapter.spec
        for step, (state, seconds) in zip(marks, states, strict=True):
            training.network.adapter.load(state, f"step {step}")
            after = _losses(training.network, examples, job.device)
            file = folder / f"{step}.safetensors"
            _write_adapter(file, state, spec, job, step)
            (train_losses, held_out_losses) = zip(before, after, strict=True)
            learned.append(
                Learned(
                    step=step,
                    file=file,
                    train_losses=train_losses,
                    held_out_losses=held_out_losses,
                    seconds=seconds,
                )
            )
    return learned


@contextmanager
def threads_of_a_training(job: Job) -> Iterator[None]:
    """As many CPU threads as the stage would use; generating may use more."""
    usual = torch.get_num_threads()
    set_threads(training_threads(0, job.width))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _job(data: Dataset, artifact: Artifact, folder: Path, device: str, **params: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = TrainParams(model="tiny-base", pre_encode=True, **params)
    work = Workspace(directory=folder, shared=data.shared, resources=Resources(device=device))
    return Job.of(Inputs(artifacts={"encode": artifact}, weights=data.weights), wanted, work)


def _losses(network: Network, examples: Sequence[Examples], device: torch.device) -> list[float]:
    return [evaluate(network, each, device).loss for each in examples]


def _write_adapter(file: Path, state: Mapping[str, Tensor], spec: AdapterSpec, job: Job, step: int) -> None:
    metadata = adapter_metadata(job, step)
    made_on: dict[str, str | int] = {"base_model": metadata["base_model_short"], "step": step}
    adapter_file.write(file, state, spec, metadata, torch.float16, made_on)


@dataclass(frozen=True, kw_only=True)
class Ear:
    """Generates clips for the prompts of a dataset, with an adapter or without, always from the same noise."""

    data: Dataset
    model: LoadedModel
    cfg: float
    steps: int

    @classmethod
    def of(cls, data: Dataset, device: str, cfg: float, steps: int) -> Ear:
        place = pick_device(device)
        dtype = dtype_named("fp16" if place.type == "cuda" else "fp32")
        return cls(data=data, model=load_model(data.weights, place, dtype), cfg=cfg, steps=steps)

    def hear(self, adapter: Path | None = None, sorts: Sequence[str] = SORTS) -> dict[str, Tensor]:
        """(B, 2, X) for each sort of prompts; one batch."""
        uses = [] if adapter is None else [AdapterUse(file=adapter)]
        attached = add_adapters(self.model, uses, print, SingularVectorFolder(self.data.shared / "bases"))
        try:
            audio_BAX = torch.stack(generate(self.model, self._wanted(sorts)))
        finally:
            for one in attached:
                one.detach()
        return dict(zip(sorts, audio_BAX.split(self.data.sizes.held_out), strict=True))

    @torch.no_grad()
    def reconstructed(self) -> Tensor:
        """The held-out clips through the autoencoder: no adapter can come nearer but by chance."""
        audio_BAX, ratio = self.data.wanted_BAX, self.model.weights.sizes.downsampling_ratio
        padded = torch.nn.functional.pad(audio_BAX, (0, -audio_BAX.shape[2] % ratio))
        draws = torch.Generator().manual_seed(0)
        made = [
            self.model.decoded(self.model.autoencoder.encode(clip[None].to(self.model.device)), draws)
            for clip in padded.to(self.model.autoencoder.dtype)
        ]
        return torch.cat(made).cpu()[..., : audio_BAX.shape[2]]

    def _wanted(self, sorts: Sequence[str]) -> list[Generation]:
        settings = {"seconds": self.data.sizes.seconds, "cfg": self.cfg, "steps": self.steps, "sampler": "euler"}
        return [
            Generation(prompt=prompt, seed=seed, **settings)
            for sort in sorts
            for seed, prompt in enumerate(self.data.prompts[sort])
        ]


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What an adapter does to the sound, for each of `stages.judge.style_distance.WAYS`."""

    base: Mapping[str, float]
    adapted: Mapping[str, float]
    """Distances of clips of named prompts to the held-out clips of the style."""
    spill: Mapping[str, Mapping[str, float]]
    """Change of clips of SAME_WORDS and OTHERS, in that of the clips of named prompts."""

    def fall(self, way: str) -> float:
        """1: the adapted clips are as the style; 0: no nearer than those of the base."""
        return 1 - self.adapted[way] / self.base[way]


def compared(base: Mapping[str, Tensor], adapted: Mapping[str, Tensor], wanted_BAX: Tensor) -> Heard:
    """Compare what the base and an adapter make of the same prompts and noise."""
    change = {name: _change(base[name], adapted[name]) for name in base}
    spill = {
        name: {way: change[name][way] / max(change[NAMED][way], 1e-9) for way in WAYS}
        for name in change.keys() - {NAMED}
    }
    return Heard(
        base=style_distances(base[NAMED], wanted_BAX), adapted=style_distances(adapted[NAMED], wanted_BAX), spill=spill
    )


def _change(base_BAX: Tensor, adapted_BAX: Tensor) -> dict[str, float]:
    """Mean distance between clips of the same prompt and noise."""
    base, adapted = clip_vectors(base_BAX), clip_vectors(adapted_BAX)
    return {way: float((base[way] - adapted[way]).square().mean(dim=1).sqrt().mean()) for way in WAYS}
