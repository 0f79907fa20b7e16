"""A training small enough for tests: the golden tiny network as base, random latents, artifacts made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cache.manifest import write_rows
from cache.shelf import Location, Shelf
from stages.contract import Artifact, Inputs, Outcome, Resources, Weights, Workspace
from stages.records import EncodedClip, PromptRow
from stages.train.run import train
from stages.train.stage import TrainParams

BASE = Path(__file__).parent / "golden" / "tiny-s"
CHANNELS, WIDTH = 16, 32
RATE, RATIO = 44_100, 4096
DIGESTS = {"transformer": "t" * 64, "conditioner": "c" * 64, "autoencoder": "a" * 64, "text_encoder": "e" * 64}


@cache
def weights() -> Weights:
    """The golden tiny checkpoint as a base model."""
    config = json.loads((BASE / "model_config.json").read_text("utf-8"))
    return Weights(model="tiny-base", folder=BASE, config=config, digests=DIGESTS)


def params(**changes: Any) -> TrainParams:
    """Few steps, exact arithmetic, latents from the cache."""
    usual: dict[str, Any] = {"model": "tiny-base", "number_of_steps": 4, "rank": 2, "base_precision": "fp32"}
    return TrainParams(**{**usual, "learning_rate": 1e-3, "pre_encode": True, **changes})


def encoded(
    shared: Path, directory: Path, lengths: Sequence[int], window: int | None = None, dtype: str = "float32"
) -> Artifact:
    """An encode artifact of random latents, one clip per length in frames, each with a prompt of its own.

    Clip i is `clip<i>`; silence is 0.25 everywhere.
    """
    generator = np.random.default_rng(5)
    latents, prompts = Shelf(shared / "latents"), Shelf(shared / "prompts")
    frames = [
        (f"{n:064x}", generator.standard_normal((size, CHANNELS)).astype(dtype)) for n, size in enumerate(lengths)
    ]
    silence = [("5" * 64, np.full((8, CHANNELS), 0.25, dtype=dtype))]
    places = latents.write(frames, {})
    texts = [
        (f"{n + 1000:064x}", generator.standard_normal((3 + n, WIDTH)).astype("float32")) for n in range(len(lengths))
    ]
    hidden = prompts.write(texts, {})
    directory.mkdir(parents=True, exist_ok=True)
    rows = [clip_row(n, place, texts[n][0]) for n, place in enumerate(places)]
    write_rows(directory / "manifest.parquet", rows, EncodedClip)
    write_rows(directory / "prompts.parquet", [prompt_row(n, place) for n, place in enumerate(hidden)], PromptRow)
    window = window or max(lengths)
    facts = {
        "num_clips": len(lengths),
        "window_frames": window,
        "window_samples": window * RATIO,
        "latent_format": "parquet",
        "silence": vars_of(latents.write(silence, {})[0]),
    }
    return Artifact(
        stage="encode", fingerprint=f"{'-'.join(map(str, lengths))}/{window}", directory=directory, facts=facts
    )


def clip_row(number: int, place: Location, prompt_key: str) -> EncodedClip:
    return EncodedClip(
        clip_id=f"clip{number}",
        item_key=place.item_key,
        prompt_key=prompt_key,
        shard=place.shard,
        row=place.row,
        num_frames=place.num_frames,
        num_valid_frames=place.num_frames,
        seconds_start=0,
        seconds_total=-(-place.num_frames * RATIO // RATE),
        prompt=f"prompt {number}",
        checksum=place.checksum,
    )


def prompt_row(number: int, place: Location) -> PromptRow:
    return PromptRow(
        prompt_key=place.item_key,
        prompt=f"prompt {number}",
        shard=place.shard,
        row=place.row,
        num_tokens=place.num_frames,
        checksum=place.checksum,
    )


def vars_of(place: Location) -> dict[str, Any]:
    """A place as a receipt's facts have it."""
    return {name: getattr(place, name) for name in ("item_key", "shard", "row", "num_frames", "checksum")}


@dataclass
class Bench:
    """One workspace: run a training in it, look at what it left."""

    root: Path
    lengths: Sequence[int] = (12, 20, 7)
    window: int | None = None
    name: str = "run"
    resources: Resources = field(default_factory=lambda: Resources(device="cpu", checkpoint_every=2, log_every=2))
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.root / self.name

    def inputs(self, **files: Path) -> Inputs:
        artifact = encoded(self.root / "shared", self.root / "encoded", self.lengths, self.window)
        return Inputs(artifacts={"encode": artifact}, weights=weights(), files=files)

    def workspace(self, stop_after: int | None = None, continued_from: Path | None = None) -> Workspace:
        """`stop_after`: ask to stop before that many steps are exceeded."""
        self.directory.mkdir(parents=True, exist_ok=True)
        asked = iter(range(1 << 30))
        return Workspace(
            directory=self.directory,
            shared=self.root / "shared",
            resources=self.resources,
            continued_from=continued_from,
            progress=lambda done, total, note="": self.notes.append(f"{done}/{total} {note}"),
            say=self.said.append,
            should_stop=lambda: stop_after is not None and next(asked) >= stop_after,
        )

    def train(self, stop_after: int | None = None, continued_from: Path | None = None, **changes: Any) -> Outcome:
        files = changes.pop("files", {})
        return train(self.inputs(**files), params(**changes), self.workspace(stop_after, continued_from))

    def at(self, name: str, **changes: Any) -> Bench:
        """Another workspace of the same store."""
        return replace(self, name=name, said=[], notes=[], **changes)

    def bytes_of(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.bytes_of("config.json"))  # type: ignore[no-any-return]
