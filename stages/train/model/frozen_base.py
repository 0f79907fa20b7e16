"""Loading of the frozen base: precision, quantisation and gradient checkpointing."""

from __future__ import annotations

from torch import Tensor, nn

from stages.adapters.kind import kind_named
from stages.adapters.layer_filter import selected
from stages.adapters.singular_vectors import SingularVectorFolder, SingularVectors, leading_singular_vectors
from stages.models.load_weights import load_conditioner, load_denoiser, stored_matrix
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser
from stages.models.quantized_linear import NONE, parameter_bytes, quantize, usable_quantization
from stages.plural import size
from stages.records import AdapterSpec
from stages.train.job import Job, network_dtype


def load_frozen_base(job: Job, spec: AdapterSpec) -> tuple[Denoiser, Conditioner]:
    """Denoiser and conditioner on the device, without an adapter yet.

    Raises:
        WeightsMismatch, UnsupportedModelConfig, WeightsNotFound, FilterMatchesNothing.
        PackageMissing: base_quantization asks for a package that is not installed.
    """
    dtype = network_dtype(job, "base model", job.params.base_precision)
    denoiser = load_denoiser(job.weights, job.device, dtype)
    conditioner = load_conditioner(job.weights, job.device, dtype)
    quantize_base(job, denoiser, conditioner, spec)
    if job.work.resources.gradient_checkpointing == "on":
        denoiser.model.transformer.checkpointing = True
        job.work.say("gradient checkpointing is on: less memory, about a third more time per step")
    return denoiser, conditioner


def quantize_base(job: Job, denoiser: Denoiser, conditioner: Conditioner, spec: AdapterSpec) -> None:
    """Store the denoiser's weights in 8 bits if params ask for it."""
    scheme = usable_quantization(job.params.base_quantization, job.device, job.work.say)
    if scheme == NONE:
        return
    bytes_before, vectors = parameter_bytes(denoiser), UnquantizedSingularVectors(job, spec, (denoiser, conditioner))
    quantize(denoiser, scheme, vectors.of)
    requested = job.params.base_quantization
    fallback = "" if scheme == requested else f" ({requested} was requested)"
    job.work.say(
        f"base model stored in {scheme}{fallback}: {size(parameter_bytes(denoiser))} instead of {size(bytes_before)}; "
        "its layers run one by one, which takes longer"
    )


class UnquantizedSingularVectors:
    """Singular vectors of the weights before they are cast and quantised, for the layers that get an -xs adapter.

    Whoever loads the adapter's file computes them from the published weights, and those of a quantised weight may be
    altogether different. They are the vectors of an unquantised training, cached under the same names.
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
        self.weights = job.weights

    def of(self, name: str, weight_OI: Tensor) -> SingularVectors | None:
        """Singular vectors of one layer; None where it gets no adapter."""
        if name not in self.names:
            return None
        found = leading_singular_vectors(stored_matrix(self.weights, name), self.rank, self.cache)
        return SingularVectors(U_OK=found.U_OK[:, : self.rank].clone(), V_IK=found.V_IK[:, : self.rank].clone())
