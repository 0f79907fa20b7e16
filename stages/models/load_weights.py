"""Loads frozen networks from a checkpoint folder: strict, memory-mapped, straight to a device and dtype."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from stages.contract import Weights
from stages.errors import WeightsMismatch, WeightsNotFound
from stages.models.checkpoint_folder import PREFIXES, WEIGHTS_FILE
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.config_checks import damage_in_words
from stages.models.nets.dit.conditioning import Conditioner, prompt_config
from stages.models.nets.dit.transformer import Denoiser
from stages.models.nets.text_encoder import TextEncoder

DENOISER, AUTOENCODER, CONDITIONER = (PREFIXES[name] for name in ("transformer", "autoencoder", "conditioner"))
"""What the names of each component's tensors start with in a whole model's file."""
_COMPONENTS = {prefix: name for name, prefix in PREFIXES.items()}
NETWORKS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    DENOISER: Denoiser,
    CONDITIONER: Conditioner,
    AUTOENCODER: Autoencoder,
}
"""The networks of a whole model's file, by prefix."""

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


def load_denoiser(weights: Weights, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Denoiser:
    """Load the diffusion transformer, frozen, in eval mode.

    Raises:
        WeightsMismatch: listing every missing, extra and misshapen tensor.
        WeightsNotFound, UnsupportedModelConfig.
    """
    return _load(weights, Denoiser, DENOISER, device, dtype)


def load_conditioner(
    weights: Weights, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Conditioner:
    """Load the trained parts of the conditioning, frozen, in eval mode. Raises as `load_denoiser`."""
    return _load(weights, Conditioner, CONDITIONER, device, dtype)


def load_autoencoder(
    weights: Weights, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Autoencoder:
    """Load the autoencoder of a whole model or of a folder that holds only one, frozen, in eval mode.

    Raises as `load_denoiser`.
    """
    return _load(weights, Autoencoder, AUTOENCODER, device, dtype)


def load_text_encoder(weights: Weights, device: str | torch.device = "cpu") -> TextEncoder:
    """Load the text encoder, in the dtype it is stored in. Raises WeightsNotFound, WeightsMismatch."""
    options = prompt_config(weights.config)
    return TextEncoder(weights.folder / weights.sizes.text_encoder_folder, options["max_length"], device)


def _load(
    weights: Weights,
    build: Callable[[Mapping[str, Any]], AnyNetwork],
    prefix: str,
    device: str | torch.device,
    dtype: torch.dtype,
) -> AnyNetwork:
    with torch.device("meta"), damage_in_words(_COMPONENTS[prefix]):
        network = build(weights.config)
    file = weights.folder / WEIGHTS_FILE
    if not file.is_file():
        raise WeightsNotFound(
            str(weights.folder), f"it holds no {WEIGHTS_FILE}", "Download the model again, or correct --weights."
        )
    with safe_open(file, framework="pt", device=str(device)) as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        sources = tensor_sources(str(file), network, shapes, prefix)
        tensors = {name: _cast(stored.get_tensor(source), dtype) for name, source in sources.items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def stored_matrix(weights: Weights, layer: str) -> Tensor:
    """The weight of a layer of the denoiser or the conditioner as the file stores it, before any cast, (out, in).

    Raises:
        WeightsNotFound: the file has no such layer.
    """
    wanted = [f"{prefix}{layer}.weight" for prefix in (DENOISER, CONDITIONER)]
    file = weights.folder / WEIGHTS_FILE
    with safe_open(file, framework="pt") as stored:
        known = sorted(stored.keys(), key=lambda name: name not in wanted)
        source = next((name for name in known if known_name(name, wanted)), None)
        if source is None:
            raise WeightsNotFound(str(file), f"it has no weight of {layer}", "Download the model again.")
        return stored.get_tensor(source).flatten(1)


def tensor_sources(
    where: str, network: nn.Module, shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> dict[str, str]:
    """The name in the file of each tensor of `network`.

    Args:
        where: the file, for the message.
        shapes: shape of every tensor of the file, by its name there.
        prefix: prefix of this component's names in the file of a whole model; an autoencoder alone has none.

    Raises:
        WeightsMismatch: unless the component's part of the file and the network have the same tensors. One that
            belongs to no component counts as extra.
    """
    if prefix == AUTOENCODER and not any(name.startswith(prefix) for name in shapes):
        prefix = ""
    wanted = {prefix + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    others = [other for other in (DENOISER, AUTOENCODER, CONDITIONER) if other != prefix] if prefix else []
    own = [name for name in shapes if not any(name.startswith(other) for other in others)]
    sources, extra = _resolved(own, wanted)
    misshapen = [
        f"{name}: stored {shapes[source]}, the config asks for {wanted[name]}"
        for name, source in sources.items()
        if shapes[source] != wanted[name]
    ]
    missing = [name for name in wanted if name not in sources]
    if missing or extra or misshapen:
        raise WeightsMismatch(where, missing=missing, extra=extra, misshapen=misshapen)
    return {name[len(prefix) :]: source for name, source in sources.items()}


def _resolved(stored: Iterable[str], wanted: Mapping[str, object]) -> tuple[dict[str, str], list[str]]:
    """Stored name per wanted name, and stored names without a match; exact matches win over shortened names."""
    sources: dict[str, str] = {}
    extra = []
    for name in sorted(stored, key=lambda name: name not in wanted):
        target = known_name(name, wanted)
        if target is None or target in sources:
            extra.append(name)
        else:
            sources[target] = name
    return sources, extra


def known_name(name: str, known: Container[str]) -> str | None:
    """The network's name of a stored tensor: the same, or the same without one dotted component.

    Older files have one more level of nesting. The first component is kept; of the others, the first whose removal
    gives a known name is removed.
    """
    if name in known:
        return name
    components = name.split(".")
    shortened = (".".join(components[:at] + components[at + 1 :]) for at in range(1, len(components)))
    return next((candidate for candidate in shortened if candidate in known), None)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts buffers like weights: 16-bit rotary frequencies are part of the published models."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
