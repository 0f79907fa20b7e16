"""From a checkpoint folder to frozen networks: strict, memory-mapped, straight to the device and dtype asked for."""

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
from stages.models.nets.dit.conditioning import Conditioner, prompt_config
from stages.models.nets.dit.transformer import Denoiser
from stages.models.nets.text_encoder import TextEncoder

DENOISER, AUTOENCODER, CONDITIONER = (PREFIXES[name] for name in ("transformer", "autoencoder", "conditioner"))
"""What the names of each component's tensors start with in a whole model's file."""
NETWORKS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    DENOISER: Denoiser,
    CONDITIONER: Conditioner,
    AUTOENCODER: Autoencoder,
}
"""The networks of a whole model's file, by prefix."""

Network = TypeVar("Network", bound=nn.Module)


def load_denoiser(weights: Weights, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Denoiser:
    """The diffusion transformer, frozen, in eval mode.

    Raises:
        WeightsMismatch: listing every missing, extra and misshapen tensor.
        WeightsNotFound, UnsupportedModelConfig.
    """
    return _load(weights, Denoiser, DENOISER, device, dtype)


def load_conditioner(
    weights: Weights, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Conditioner:
    """The trained parts of the conditioning, frozen, in eval mode. Raises as `load_denoiser`."""
    return _load(weights, Conditioner, CONDITIONER, device, dtype)


def load_autoencoder(
    weights: Weights, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Autoencoder:
    """The autoencoder of a whole model or of a stand-alone autoencoder folder, frozen, in eval mode.

    Raises as `load_denoiser`.
    """
    return _load(weights, Autoencoder, AUTOENCODER, device, dtype)


def load_text_encoder(weights: Weights, device: str | torch.device = "cpu") -> TextEncoder:
    """The text encoder, in the dtype it is stored in. Raises WeightsNotFound, WeightsMismatch."""
    options = prompt_config(weights.config)
    return TextEncoder(weights.folder / weights.sizes.text_encoder_folder, options["max_length"], device)


def _load(
    weights: Weights,
    build: Callable[[Mapping[str, Any]], Network],
    prefix: str,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Network:
    with torch.device("meta"):
        network = build(weights.config)
    file = weights.folder / WEIGHTS_FILE
    if not file.is_file():
        raise WeightsNotFound(
            str(weights.folder), f"it holds no {WEIGHTS_FILE}", "Download the model again, or mend --weights."
        )
    with safe_open(file, framework="pt", device=str(device)) as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        sources = tensor_sources(str(file), network, shapes, prefix)
        tensors = {name: _as(stored.get_tensor(source), dtype) for name, source in sources.items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def tensor_sources(
    where: str, network: nn.Module, shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> dict[str, str]:
    """Which stored tensor fills which tensor of `network`, by the network's names.

    Args:
        shapes: of every tensor of the file, by its name there.
        prefix: of this component's names in a whole model's file; a stand-alone autoencoder has none.

    Raises:
        WeightsMismatch: unless the component's part of the file and the network cover each other exactly. A tensor
            that belongs to no component counts as extra.
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
    """Stored name per wanted name, and the stored names that fill nothing; exact names win over shortened ones."""
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
    """The known name that a stored name stands for: itself, or itself without one dotted component.

    Older files carry one more level. The first component stays; of the others the first that can be left out is.
    """
    if name in known:
        return name
    components = name.split(".")
    shortened = (".".join(components[:at] + components[at + 1 :]) for at in range(1, len(components)))
    return next((candidate for candidate in shortened if candidate in known), None)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Buffers are cast like weights: the rounding of rotary frequencies in 16 bits is part of the published models."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
