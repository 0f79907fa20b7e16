"""A training small enough for tests: the golden tiny network as base, random latents, artifacts made by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cache.location import Location
from cache.manifest import read_rows, write_rows
from cache.shard_pool import ShardPool
from stages.contract import Artifact, Inputs, Outcome, Resources, Weights, Workspace
from stages.records import Clip, EncodedClip, PromptRow
from stages.train.record.metrics import StepRow
from stages.train.run import train
from stages.train.stage import TrainParams
from tests.prepared_clips import write_prepared

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
    """Few steps, few adapted layers, exact arithmetic, latents from the cache."""
    usual: dict[str, Any] = {"model": "tiny-base", "number_of_steps": 4, "rank": 2, "base_precision": "fp32"}
    usual |= {"learning_rate": 1e-3, "pre_encode": True, "include": ("layers.0.self_attn",)}
    return TrainParams(**{**usual, **changes})


def random_latents(lengths: Sequence[int]) -> list[np.ndarray]:
    """One (frames, channels) array per length."""
    generator = np.random.default_rng(5)
    return [generator.standard_normal((length, CHANNELS)).astype("float32") for length in lengths]


def random_hidden(count: int, seed: int = 6) -> list[np.ndarray]:
    """Hidden states of prompts of different lengths."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((3 + number, WIDTH)).astype("float32") for number in range(count)]


def encoded(
    shared: Path,
    directory: Path,
    latents: Sequence[np.ndarray],
    hidden: Sequence[np.ndarray],
    silence: np.ndarray | None = None,
    window: int | None = None,
) -> Artifact:
    """An encode artifact: clip i is `clip<i>`, with latents i and hidden states i, and silence 0.25 unless given."""
    silence = np.full((8, CHANNELS), 0.25, dtype="float32") if silence is None else silence
    places = put(ShardPool(shared / "latents"), [*latents, silence])
    rows = [clip_row(n, place, key_of(hidden[n])) for n, place in enumerate(places[:-1])]
    prompts = [prompt_row(n, place) for n, place in enumerate(put(ShardPool(shared / "prompts"), hidden))]
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "manifest.parquet", rows, EncodedClip)
    write_rows(directory / "prompts.parquet", prompts, PromptRow)
    window = window or max(len(frames) for frames in latents)
    facts = {
        "num_clips": len(latents),
        "window_frames": window,
        "window_samples": window * RATIO,
        "latent_format": "parquet",
        "silence": vars_of(places[-1]),
    }
    name = hashlib.sha256("".join([row.item_key + row.prompt_key for row in rows]).encode()).hexdigest()
    return Artifact(stage="encode", fingerprint=f"{name}/{window}", directory=directory, facts=facts)


def key_of(frames: np.ndarray) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def put(pool: ShardPool, items: Sequence[np.ndarray]) -> list[Location]:
    """Items into one shard, each named by its content."""
    return pool.write([(key_of(item), np.ascontiguousarray(item)) for item in items], {})


def ingested(shared: Path, directory: Path, audio: Sequence[np.ndarray], window_samples: int | None = None) -> Artifact:
    """An ingest artifact: clip i is `clip<i>`, (2, samples) float32, with the prompt `prompt <i>`."""
    rows = []
    for number, audio_CL in enumerate(audio):
        path = Path("prepared") / f"{number}.flac"
        write_prepared(shared / path, audio_CL.T)
        rows.append(prepared_row(number, str(path), audio_CL.shape[1]))
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "manifest.parquet", rows, Clip)
    window_samples = window_samples or max(audio_CL.shape[1] for audio_CL in audio)
    facts = {"num_clips": len(rows), "window_samples": window_samples, "window_frames": -(-window_samples // RATIO)}
    name = hashlib.sha256(b"".join(audio_CL.tobytes() for audio_CL in audio)).hexdigest()
    return Artifact(stage="ingest", fingerprint=f"{name}/{window_samples}", directory=directory, facts=facts)


def random_audio(lengths: Sequence[int]) -> list[np.ndarray]:
    """One (2, samples) array per length in samples."""
    generator = np.random.default_rng(7)
    return [generator.uniform(-0.5, 0.5, (2, length)).astype("float32") for length in lengths]


def prepared_row(number: int, audio: str, num_samples: int) -> Clip:
    return Clip(
        clip_id=f"clip{number}",
        audio=audio,
        digest=f"sha256:{number}",
        num_samples=num_samples,
        source_sample_rate_hz=RATE,
        num_channels=2,
        crop_start=0,
        num_samples_cut=0,
        num_samples_padded=0,
        seconds_total=-(-num_samples // RATE),
        prompt=f"prompt {number}",
        caption_source=f"clip{number}.txt",
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
    """A location as a receipt's facts have it."""
    return {name: getattr(place, name) for name in ("item_key", "shard", "row", "num_frames", "checksum")}


@dataclass
class Bench:
    """One workspace: runs a training in it and reads its results."""

    root: Path
    artifact: Artifact
    name: str = "run"
    resources: Resources = field(default_factory=lambda: Resources(device="cpu", checkpoint_every=2, log_every=2))
    said: list[str] = field(default_factory=list)
    told: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    """Progress that a log shows: done, total, figures."""
    handed_out: dict[str, bytes] = field(default_factory=dict)
    """Adapters exported on the way, by the end of their names."""

    @classmethod
    def of_latents(cls, root: Path, lengths: Sequence[int] = (12, 20, 7), window: int | None = None) -> Bench:
        """Random latents, one clip per length in frames."""
        latents, hidden = random_latents(lengths), random_hidden(len(lengths))
        return cls(root, encoded(root / "shared", root / "encoded", latents, hidden, window=window))

    @classmethod
    def of_audio(cls, root: Path, lengths: Sequence[int], window_samples: int | None = None) -> Bench:
        """Random audio, one clip per length in samples."""
        return cls(root, ingested(root / "shared", root / "ingested", random_audio(lengths), window_samples))

    @property
    def directory(self) -> Path:
        return self.root / self.name

    def workspace(self, stop_after: int | None = None, continued_from: Path | None = None) -> Workspace:
        """`stop_after`: ask to stop once that many steps were made in this workspace."""
        self.directory.mkdir(parents=True, exist_ok=True)
        asked = iter(range(1 << 30))
        return Workspace(
            directory=self.directory,
            shared=self.root / "shared",
            resources=self.resources,
            continued_from=continued_from,
            progress=self.hear,
            say=self.said.append,
            identity="whose",
            hand_out=lambda file, suffix: self.handed_out.update({suffix: file.read_bytes()}),
            should_stop=lambda: stop_after is not None and next(asked) >= stop_after,
        )

    def hear(self, done: int, total: int, note: str = "", *, interim: bool = False, **figures: float) -> None:
        """The workspace's progress."""
        if not interim:
            self.told.append((done, total, figures))

    def train(self, stop_after: int | None = None, continued_from: Path | None = None, **changes: Any) -> Outcome:
        """Run the stage; `changes` are params, and `files` the request's other files."""
        files = changes.pop("files", {})
        inputs = Inputs(artifacts={self.artifact.stage: self.artifact}, weights=weights(), files=files)
        wanted = params(**{"pre_encode": self.artifact.stage == "encode", **changes})
        return train(inputs, wanted, self.workspace(stop_after, continued_from))

    def at(self, name: str, **changes: Any) -> Bench:
        """Another workspace of the same store."""
        return replace(self, name=name, said=[], told=[], handed_out={}, **changes)

    def bytes_of(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def results(self) -> dict[str, bytes]:
        """Every file that must not depend on how often a training was stopped."""
        names = ["adapter.safetensors", "adapter_fp32.safetensors"]
        names += [f"{table}.parquet" for table in ("metrics", "steps", "layers")]
        names += [path.name for path in self.directory.glob("adapter_ema*.safetensors")]
        names += [str(path.relative_to(self.directory)) for path in self.directory.glob("checkpoints/*/tensors*")]
        return {name: self.bytes_of(name) for name in names}

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.bytes_of("config.json"))  # type: ignore[no-any-return]

    @property
    def losses(self) -> list[float]:
        return [row.loss for row in read_rows(self.directory / "steps.parquet", StepRow)]
