"""The interface of a stage: its declaration, inputs, workspace and outcome. Light: standard library only."""

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
    """Declaration of a stage: it turns input artifacts and params into one artifact, named by a fingerprint of them."""

    name: str
    version: int
    """To be raised, with an entry in CHANGELOG.md, when the same inputs should give another result."""
    params: type[P]
    """The dataclass of everything that changes the result; all of it is hashed."""
    inputs: tuple[str, ...]
    """Names of the stages whose artifacts it may read."""
    entry: str
    """"module:function", imported only when the stage must run."""
    components: tuple[str, ...] = ()
    """Parts of the checkpoint it reads; their digests are hashed."""
    excluded_from_identity: Callable[[P], tuple[str, ...]] = lambda params: ()
    """Names of params that may differ when an unfinished run is continued: in the artifact's fingerprint, but
    not in the run's identity."""
    exceeds_request: Callable[[Path, P], bool] = lambda directory, params: False
    """True when an unfinished run's folder holds more than these params ask for, so that this run must not use it."""

    def load(self) -> Callable[[Inputs, P, Workspace], Outcome]:
        """The stage's function. Only this import may load torch."""
        module, function = self.entry.split(":")
        return getattr(import_module(module), function)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where and how fast a stage runs; not hashed, so no result may depend on it beyond a stated tolerance.

    Last bits of a training depend on its device and, on a CPU, on its threads, among which sums are split. Neither is
    hashed: a training would begin anew whenever it is continued with other threads or on another machine.
    """

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
    threads: int = param(
        0,
        ge=0,
        help="CPU threads of torch; 0: torch's default; a training on a CPU gives other last bits with another number",
    )
    checkpoint_every: int = param(
        500, ge=1, stage="train", help="steps between checkpoints; the last step is always saved"
    )
    checkpoint_minutes: float = param(
        10.0, gt=0, stage="train", help="minutes after which a checkpoint is saved in any case"
    )
    save_every: int | None = param(
        None,
        ge=1,
        stage="train",
        help="steps between adapters that are exported on the way, as NAME_000500.safetensors; unset: none",
    )
    """They leave the workspace (`Workspace.hand_out`) and are no part of the result."""
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
    """Results recorded in the receipt, as JSON values: counts, the window found, losses."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of the dataset, before its content is examined."""

    name: str
    """Path inside the zip or folder, with forward slashes."""
    num_bytes: int
    digest: str | None
    """`sha256:...` of its bytes; None when it could not be read, for the reason in `fault`."""
    fault: str | None = None
    lacks: str = ""
    """A package that is not installed and that might decode it where the others cannot."""
    packed_bytes: int | None = None
    """Its size inside the zip; None in a folder."""
    name_encoding: str = "utf-8"
    """`cp437` where a zip does not say how its name is encoded and it is not UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The user's zip or folder."""

    path: Path
    kind: str
    """`zip` or `folder`."""
    fingerprint: str
    """Hash of the members' sorted names and digests; neither path nor dates are part of it."""
    members: tuple[Member, ...]
    others: tuple[Member, ...] = ()
    """Files that are part of no clip: nothing depends on them, and they are not in the fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint folder in the published layout, whose tensors are not loaded."""

    model: str
    folder: Path
    config: Mapping[str, Any]
    """The parsed model_config.json."""
    digests: Mapping[str, str]
    """Digest of each component: `autoencoder`, `transformer`, `conditioner`, `text_encoder`."""

    @property
    def sizes(self) -> ModelConfig:
        """Typed access to the sizes in `config`."""
        return ModelConfig(self.config)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything a stage may read."""

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    source: Source | None = None
    weights: Weights | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    """Other files of the request, such as `lora_checkpoint`."""


class Progress(Protocol):
    """Callback of a stage for its progress."""

    def __call__(self, done: int, total: int, note: str = "", *, interim: bool = False, **figures: float) -> None:
        """Report that `done` of `total` clips or steps are done.

        Args:
            note: what else a line of a log says, such as the clip's name.
            interim: between two lines of a log: only what redraws its display shows it.
            figures: what is measured: bytes_done, bytes_total, loss, learning_rate, steps_per_second, memory_bytes.
        """


@dataclass(kw_only=True)
class Workspace:
    """Where a stage writes its files, and how it reports to the caller; it does neither in any other way."""

    directory: Path
    """Becomes the artifact when the stage returns; after a stop, keeps what was written for the next run."""
    shared: Path
    """Root of the content-addressed files that runs share: `prepared/`, `latents/`, `prompts/`; written atomically."""
    resources: Resources = field(default_factory=Resources)
    continued_from: Path | None = None
    """An earlier, shorter artifact of the same run identity, to be continued."""
    copied_to: Path | None = None
    """Folder outside the store that the caller copies results to afterwards: a stage checks that they fit there."""
    identity: str = ""
    """Identity of the run, for files that are handed out: whose they are."""
    hand_out: Callable[[Path, str], None] = lambda file, suffix: None
    """Copies a file of the workspace to the user before the stage is done; `suffix` is what the copy's name ends in."""
    progress: Progress = lambda done, total, note="", *, interim=False, **figures: None
    phase: Callable[[str], None] = lambda what: None
    """Names what is done now and may take long, such as `loading the base model`; until the next phase or progress.
    An empty name ends it: something else writes to the terminal."""
    say: Callable[[str], None] = lambda line: None
    """Prints one line for the user: a decision, a fallback, a warning."""
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a stage, apart from its files in the workspace."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that later stages, plan and status can read without opening the manifest."""
