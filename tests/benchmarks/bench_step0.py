"""How far a new adapter moves the base model before any training, by the initial values of its magnitudes.

    python tests/benchmarks/bench_step0.py [CHECKPOINT_FOLDER]

ours        norms of the weight as the layer uses it, in float32
16-bit      norms rounded to the weight's dtype, as in the reference
reference   16-bit norms, and the adapted weight built and rounded to its dtype, as in the reference

Figures are relative L2 differences of the velocity from that of the bare base, whose weights are bf16: with all
arithmetic in float32, where nothing but the beginning shows, and in bf16, where its own rounding (the last line) bounds
what can be told. `changed` is the share of weights that the reference's rounding moves.

Shape letters: B clips, C latent channels, T frames.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.adapters.attach import Adapter, attach
from stages.catalogue import adapter_kinds
from stages.contract import Weights
from stages.models.load_weights import load_conditioner, load_denoiser
from stages.records import AdapterSpec

TINY = Path(__file__).parents[1] / "golden" / "tiny-s"
BASE = torch.bfloat16
Networks = tuple[nn.Module, nn.Module]
Way = Callable[[Networks, Adapter], None]


def networks(folder: Path, arithmetic: torch.dtype, base: torch.dtype = BASE) -> Networks:
    """Denoiser and conditioner with weights of one precision, computing in another."""
    config = json.loads((folder / "model_config.json").read_text("utf-8"))
    weights = Weights(model=folder.name, folder=folder, config=config, digests={})
    return load_denoiser(weights, dtype=base).to(arithmetic), load_conditioner(weights, dtype=base).to(arithmetic)


@torch.no_grad()
def velocity_BCT(roots: Networks) -> Tensor:
    """The velocity for inputs that are always the same; timesteps and durations have no rounding of their own."""
    denoiser, conditioner = roots
    generator = torch.Generator().manual_seed(0)
    channels = denoiser.model.preprocess_conv.weight.shape[1]
    noised_BCT, given_BCT = (torch.randn(2, channels, 24, generator=generator) for _ in range(2))
    hidden = [torch.randn(length, conditioner.width, generator=generator) for length in (5, 9)]
    given_B1T = (torch.rand(2, 1, 24, generator=generator) > 0.5).float()
    conditioning = conditioner(conditioner.padded_prompts(hidden), torch.tensor([96.0, 192.0]))
    timestep_B = torch.tensor([0.375, 0.75])
    return denoiser(noised_BCT, timestep_B, conditioning, given_B1T, given_BCT * given_B1T).float()


def ours(roots: Networks, adapter: Adapter) -> None:
    """Changes nothing."""


def rounded_magnitudes(roots: Networks, adapter: Adapter) -> None:
    """Rounds the initial magnitudes to the dtype of the weight."""
    weights = {name: weight for root in roots for name, weight in root.named_parameters()}
    state = adapter.state()
    for key in state:
        layer, leaf = key.split(".parametrizations.weight.0.")
        if leaf.startswith("magnitude"):
            matrix_OI = weights[f"{layer}.weight"].to(BASE).flatten(1)
            by_row = leaf == "magnitude_r" or (leaf == "magnitude" and "cols" not in adapter.spec.kind)
            state[key] = matrix_OI.norm(dim=1 if by_row else 0).float()
    adapter.load(state, "norms in 16 bits")


def rounded_weights(roots: Networks, adapter: Adapter) -> None:
    """Rounds the magnitudes, and builds and rounds every adapted weight."""
    rounded_magnitudes(roots, adapter)
    names = adapter.layer_names()
    adapter.merge()
    for root in roots:
        for name, module in root.named_modules():
            if name in names:
                module.weight.copy_(module.weight.to(BASE))


WAYS: dict[str, Way] = {"ours": ours, "16-bit": rounded_magnitudes, "reference": rounded_weights}


@torch.no_grad()
def moved(folder: Path, kind: str, way: Way, arithmetic: torch.dtype) -> tuple[float, float]:
    """Relative difference of the velocity, and the share of weights that changed."""
    roots = networks(folder, arithmetic)
    before = velocity_BCT(roots)
    weights = {id(root): {n: w.clone() for n, w in root.named_parameters()} for root in roots}
    spec = AdapterSpec(kind=kind, rank=4, alpha=4.0)
    adapter = attach(roots, spec, generator=torch.Generator().manual_seed(1))
    way(roots, adapter)
    after = velocity_BCT(roots)
    now = [(weights[id(root)][n], w) for root in roots for n, w in root.named_parameters() if n in weights[id(root)]]
    changed = sum(int((old != new).sum()) for old, new in now) / sum(old.numel() for old, _ in now)
    return relative(after, before), changed


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def main(folder: Path) -> None:
    line = "{:<14} {:>10} {:>10} {:>10} {:>9}   {:>10} {:>10} {:>10}".format
    print(line("", "float32", "arithmetic", "", "", "bf16", "arithmetic", ""))
    print(line("kind", *WAYS, "changed", *WAYS))
    for kind in adapter_kinds():
        exact = [moved(folder, kind, way, torch.float32) for way in WAYS.values()]
        rough = [moved(folder, kind, way, BASE)[0] for way in WAYS.values()]
        figures = [f"{value:.1e}" for value, _ in exact]
        print(line(kind, *figures, f"{exact[-1][1]:.1%}", *(f"{value:.1e}" for value in rough)))
    noise = relative(velocity_BCT(networks(folder, BASE)), velocity_BCT(networks(folder, torch.float32)))
    print(f"bf16 arithmetic against float32, without an adapter: {noise:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TINY)
