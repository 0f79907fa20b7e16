"""A model loaded for generation, with adapters on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stages.adapters import adapter_file
from stages.adapters.attach import Adapter, attach
from stages.adapters.kind import kind_named
from stages.adapters.singular_vectors import SingularVectorCache
from stages.contract import Weights
from stages.errors import AdapterMismatch
from stages.generate.settings import AdapterUse
from stages.models.load_weights import (
    load_autoencoder,
    load_conditioner,
    load_denoiser,
    load_text_encoder,
    stored_matrix,
)
from stages.models.nets.autoencoder.autoencoder import Autoencoder, DecodeNoise
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser
from stages.models.nets.text_encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The four networks of a model, on one device."""

    weights: Weights
    denoiser: Denoiser
    conditioner: Conditioner
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    device: torch.device

    @property
    def objective(self) -> str:
        """`diffusion_objective` of the model's config."""
        return str(self.weights.sizes.diffusion.get("diffusion_objective"))

    @torch.no_grad()
    def decoded(self, latents_BCT: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 2, X) float32 audio; the noise that decoding adds comes from `generator`."""
        noise = DecodeNoise(bottleneck=generator, tokens=generator)
        return self.autoencoder.decode_chunked(latents_BCT.to(self.device), noise=noise).float()


def load_model(weights: Weights, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load all four networks; the text encoder keeps the dtype it is stored in.

    Raises:
        WeightsMismatch, WeightsNotFound, UnsupportedModelConfig.
    """
    return LoadedModel(
        weights=weights,
        denoiser=load_denoiser(weights, device, dtype),
        conditioner=load_conditioner(weights, device, dtype),
        autoencoder=load_autoencoder(weights, device, dtype),
        text_encoder=load_text_encoder(weights, device),
        device=device,
    )


def add_adapters(
    model: LoadedModel,
    uses: Sequence[AdapterUse],
    say: Callable[[str], None],
    cache: SingularVectorCache | None = None,
) -> list[Adapter]:
    """Attach adapter files one on top of another, each at its strength.

    Args:
        say: called with a line for each adapter that was trained on other weights than these.

    Raises:
        AdapterMismatch: a file is no adapter, or is not one for a model of this size.
        RankTooLarge, FilterMatchesNothing, LayerNotAdaptable: likewise.
    """
    try:
        return [_added(model, use, say, cache) for use in uses]
    except AdapterMismatch as error:
        raise AdapterMismatch(error.file, error.differences, generating=True) from error


def _added(
    model: LoadedModel, use: AdapterUse, say: Callable[[str], None], cache: SingularVectorCache | None
) -> Adapter:
    if not use.file.is_file():
        raise AdapterMismatch(str(use.file), ["there is no such file"])
    stored = adapter_file.read(use.file)
    if note := other_base(stored, model.weights):
        say(f"{use.file}: {note}")
    # Initial values are overwritten at once, and must not be drawn from torch's global generator.
    rng = torch.Generator()
    roots = (model.denoiser, model.conditioner)
    adapter = attach(
        roots,
        stored.spec,
        generator=rng,
        singular_vector_cache=cache,
        stored_weight=partial(stored_matrix, model.weights),
    )
    try:
        adapter.load(stored.tensors, str(use.file))
    except AdapterMismatch:
        adapter.detach()
        raise
    adapter.set_strength(use.strength)
    adapter.train(False)
    return adapter


def other_base(stored: adapter_file.AdapterFile, weights: Weights) -> str:
    """A sentence if the adapter names other base weights than these; empty if not, or if it names none."""
    theirs, ours = stored.metadata.get("base_digest", ""), weights.digests["transformer"]
    if not theirs or theirs == ours:
        return ""
    named = stored.metadata.get("base_model_name") or stored.metadata.get("base_model", "other weights")
    sentence = f"trained on {named} ({theirs[:8]}), used on {weights.model} ({ours[:8]})"
    if kind_named(stored.spec.kind).basis.singular:
        return f"{sentence}; its fixed directions are computed from the weights in use, so that its effect differs"
    return sentence
