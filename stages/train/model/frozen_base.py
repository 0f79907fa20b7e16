"""The frozen base as a training uses it: in which precision, stored how, and what of it is computed twice."""

from __future__ import annotations

from torch import Tensor, nn

from stages.adapters.kind import kind_named
from stages.adapters.layer_filter import selected
from stages.adapters.singular_vectors import SingularVectorFolder, SingularVectors, leading_singular_vectors
from stages.models.load_weights import load_conditioner, load_denoiser
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser
from stages.models.quantized_linear import NONE, parameter_bytes, quantize, usable_quantization
from stages.records import AdapterSpec
from stages.train.job import Job, network_dtype


def load_frozen_base(job: Job, spec: AdapterSpec) -> tuple[Denoiser, Conditioner]:
    """Both networks on the device, without an adapter yet.

    Raises:
        WeightsMismatch, UnsupportedModelConfig, WeightsNotFound, FilterMatchesNothing.
        PackageMissing: the base is to be stored in 8 bits, and the extra for it is not installed.
    """
    dtype = network_dtype(job, "base model", job.params.base_precision)
    denoiser = load_denoiser(job.weights, job.device, dtype)
    conditioner = load_conditioner(job.weights, job.device, dtype)
    quantize_base(job, denoiser, conditioner, spec)
    if job.work.resources.gradient_checkpointing == "on":
        denoiser.model.transformer.checkpointing = True
        job.work.say("blocks are computed again in the backward pass: less memory, about a third more time")
    return denoiser, conditioner


def quantize_base(job: Job, denoiser: Denoiser, conditioner: Conditioner, spec: AdapterSpec) -> None:
    """Store the base in 8 bits if that is asked for."""
    how = usable_quantization(job.params.base_quantization, job.device, job.work.say)
    if how == NONE:
        return
    wide, vectors = parameter_bytes(denoiser), UnquantizedSingularVectors(job, spec, (denoiser, conditioner))
    quantize(denoiser, how, vectors.of)
    job.work.say(
        f"base stored in {how} (asked for: {job.params.base_quantization}): "
        f"{parameter_bytes(denoiser) / 2**20:,.1f} MiB "
        f"instead of {wide / 2**20:,.1f}; layers are computed one by one"
    )


class UnquantizedSingularVectors:
    """Singular vectors of the weights before they are rounded, of the layers that an -xs adapter goes on.

    Whoever loads the adapter's file computes them from the published weights, and those of a rounded weight may be
    others altogether. They are the vectors of an unquantised training, remembered under the same names.
    """

    def __init__(self, job: Job, spec: AdapterSpec, roots: tuple[nn.Module, ...]) -> None:
        layers = [
            name
            for root in roots
            for name, module in root.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv1d))
        ]
        singular = kind_named(spec.kind).basis.singular
        self.names = frozenset(selected(layers, spec.include, spec.exclude)) if singular else frozenset()
        self.rank, self.cache = spec.rank, SingularVectorFolder(job.work.shared / "bases")

    def of(self, name: str, weight_OI: Tensor) -> SingularVectors | None:
        """Of one layer; None where no adapter goes."""
        if name not in self.names:
            return None
        found = leading_singular_vectors(weight_OI, self.rank, self.cache)
        return SingularVectors(U_OK=found.U_OK[:, : self.rank].clone(), V_IK=found.V_IK[:, : self.rank].clone())
