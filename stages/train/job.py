"""What a training was asked to do, and with what."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from cache.fingerprint import fingerprint
from stages import catalogue
from stages.contract import Artifact, Inputs, Weights, Workspace
from stages.models.device import dtype_named, pick_device, precision_of, slow_on, usable_dtype
from stages.records import ModelSpec
from stages.train.rng import StepRng
from stages.train.stage import STAGE, TrainParams


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the stage."""

    inputs: Inputs
    params: TrainParams
    work: Workspace
    weights: Weights
    model: ModelSpec
    device: torch.device

    @classmethod
    def of(cls, inputs: Inputs, params: TrainParams, work: Workspace) -> Job:
        """Settle the model and the device."""
        assert inputs.weights is not None, "the runner hands train its weights"
        return cls(
            inputs=inputs,
            params=params,
            work=work,
            weights=inputs.weights,
            model=catalogue.models()[params.model],
            device=pick_device(work.resources.device),
        )

    @property
    def rng(self) -> StepRng:
        """Where every draw comes from."""
        return StepRng(self.params.seed)

    @property
    def width(self) -> int:
        """Of the transformer."""
        return self.weights.sizes.transformer_width

    @property
    def artifact(self) -> Artifact:
        """What the clips are read from."""
        return self.inputs.artifacts["encode" if self.params.pre_encode else "ingest"]

    @property
    def identity(self) -> str:
        """Names the run whatever its number of steps: only its own checkpoints may be gone on from."""
        left_out = STAGE.excluded_from_identity(self.params)
        params = {name: value for name, value in asdict(self.params).items() if name not in left_out}
        record = {
            "version": STAGE.version,
            "params": params,
            "artifact": self.artifact.fingerprint,
            "weights": dict(self.weights.digests),
        }
        return fingerprint("training", record)

    def dtype(self, precision: str) -> torch.dtype:
        """A precision asked for, or the nearest that works on the device, which is then said."""
        return usable_dtype(dtype_named(precision), self.device, self.work.say)


def network_dtype(job: Job, what: str, asked: str) -> torch.dtype:
    """The dtype of a network, after saying what was asked for and what is used."""
    dtype = job.dtype(asked)
    used = precision_of(dtype)
    job.work.say(f"{what} in {used} (asked for: {asked}){', adapter in fp32' if what == 'base' else ''}")
    if slow_on(job.device, dtype):
        job.work.say(f"this processor has no {used} arithmetic: fp32 is faster here, and takes more memory")
    return dtype
