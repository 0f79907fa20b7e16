"""One training job: inputs, parameters, workspace, weights and device."""

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
        """The job for these arguments of the stage, with model and device resolved."""
        assert inputs.weights is not None, "the runner always passes weights to train"
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
        """Source of every random draw."""
        return StepRng(self.params.seed)

    @property
    def width(self) -> int:
        """Width of the transformer: features of a token."""
        return self.weights.sizes.transformer_width

    @property
    def artifact(self) -> Artifact:
        """The artifact that clips are read from."""
        return self.inputs.artifacts["encode" if self.params.pre_encode else "ingest"]

    @property
    def identity(self) -> str:
        """Fingerprint of the run without its number of steps: a run resumes only its own checkpoints."""
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
        """The dtype of a requested precision, or float32 (and says so) where the device cannot compute in it."""
        return usable_dtype(dtype_named(precision), self.device, self.work.say)


def network_dtype(job: Job, name: str, requested: str) -> torch.dtype:
    """The dtype that a network runs in; prints it, and a hint where the processor emulates it.

    Args:
        name: name of the network, as printed.
        requested: precision in params.
    """
    dtype = job.dtype(requested)
    used = precision_of(dtype)
    fallback = "" if used == requested else f" ({requested} was requested)"
    job.work.say(f"{name} in {used}{fallback}{', adapter in fp32' if name == 'base model' else ''}")
    if slow_on(job.device, dtype):
        job.work.say(f"this processor has no {used} arithmetic: fp32 is faster here, and takes more memory")
    return dtype
