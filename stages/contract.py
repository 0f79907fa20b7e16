"""The shape of every stage: what it is given, where it may write, what it hands back. Light: standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from stages.field import check, param
from stages.model_config import ModelConfig

P = TypeVar("P")


@dataclass(frozen=True)
class Stage(Generic[P]):
    """A kind of work: input artifacts and params in, one artifact out, named by a fingerprint of all of them."""

    name: str
    version: int
    """Bump when the same inputs should give a different result; an entry in CHANGELOG.md."""
    params: type[P]
    """Everything that changes the result: hashed whole."""
    inputs: tuple[str, ...]
    """Names of the stages whose artifacts it may read."""
    entry: str
    """"module:function", imported only when the stage must run."""
    components: tuple[str, ...] = ()
    """Parts of the checkpoint it reads; their digests are hashed."""
    excluded_from_identity: Callable[[P], tuple[str, ...]] = lambda params: ()
    """Params that an unfinished run may change and still go on: they name the artifact, not the run."""

    exceeds_request: Callable[[Path, P], bool] = lambda directory, params: False
    """Whether an unfinished run's folder holds more than these params ask for: this request must leave it be."""

    def load(self) -> Callable[[Inputs, P, Workspace], Outcome]:
        """The stage's function; this import is what may load torch."""
        module, function = self.entry.split(":")
        return getattr(import_module(module), function)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where and how fast a stage runs; not hashed, so no result may depend on it beyond a stated tolerance."""

    device: str = param(
        "auto",
        pattern=r"auto|cpu|mps|cuda(:\d+)?",
        rule="auto, cpu, cuda, cuda:1 and so on, or mps",
        help="auto, cpu, cuda, cuda:1 or mps",
    )
    workers: int = param(
        0,
        ge=0,
        help="processes for ingest (0: one per core), and for reading ahead without pre_encode (0: half the cores, at "
        "most 4, none for less than 30 minutes of audio)",
    )
    threads: int = param(0, ge=0, help="CPU threads of torch; 0: torch's default")
    checkpoint_every: int = param(
        500, ge=1, stage="train", help="steps between checkpoints; the last step is always saved"
    )
    keep_checkpoints: int = param(2, ge=1, stage="train", help="checkpoints kept while training")
    """The finished artifact keeps its last one."""
    log_every: int = param(50, ge=1, stage="train", help="steps between progress lines")
    fast_path: str = param(
        "auto",
        choices=("auto", "off"),
        stage="train",
        help="compile steps and replay them as CUDA graphs; off: run op by op, slower but without compiling",
    )
    """Results of the two agree to rounding."""
    gradient_checkpointing: str = param(
        "auto",
        choices=("auto", "on", "off"),
        stage="train",
        help="recompute blocks in the backward pass to save memory; auto: when memory is short",
    )
    engine: str = param(
        "loky", choices=("loky", "threading", "dask", "ray"), stage="ingest", help="joblib backend of ingest"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished result in the store."""

    stage: str
    fingerprint: str
    directory: Path
    facts: Mapping[str, Any]
    """What the receipt records about it: counts, the window found, losses. JSON values."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of the dataset, before anything is known about its content."""

    name: str
    """Path inside the zip or folder, with forward slashes."""
    num_bytes: int
    digest: str | None
    """`sha256:...` of its bytes; None when it could not be read (then `fault` says why)."""
    fault: str | None = None
    packed_bytes: int | None = None
    """Its size inside the zip; None in a folder."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The user's zip or folder."""

    path: Path
    kind: str
    """`zip` or `folder`."""
    fingerprint: str
    """Over the members' sorted (name, digest): never the path or a date."""
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint folder in the published layout, looked at but not loaded."""

    model: str
    folder: Path
    config: Mapping[str, Any]
    """The parsed model_config.json."""
    digests: Mapping[str, str]
    """Per component: `autoencoder`, `transformer`, `conditioner`, `text_encoder`."""

    @property
    def sizes(self) -> ModelConfig:
        """Typed access to the sizes in `config`."""
        return ModelConfig(self.config)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a stage may read."""

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    source: Source | None = None
    weights: Weights | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    """Other files of the request, such as `lora_checkpoint`."""


class Progress(Protocol):
    """Called by a stage as its work moves on."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@dataclass(kw_only=True)
class Workspace:
    """The only place a stage writes and the only way it talks."""

    directory: Path
    """Becomes the artifact when the stage returns; after a stop, holds what the stage left here."""
    shared: Path
    """Root of what runs share by content: `prepared/`, `latents/`, `prompts/`; files are written aside and renamed."""
    resources: Resources = field(default_factory=Resources)
    continued_from: Path | None = None
    """An earlier, shorter artifact of the same run identity, to go on from."""
    progress: Progress = lambda done, total, note="": None
    say: Callable[[str], None] = lambda line: None
    """One line for a person: a decision taken, a fallback, a warning."""
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage hands back; its files lie in the workspace."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that later stages, plan and status read without opening the manifest."""
