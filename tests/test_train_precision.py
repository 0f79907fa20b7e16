"""Frozen bases in 16 bits against float32, and the first step of every adapter against the bare base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.adapters.attach import attach
from stages.adapters.kind import kind_named
from stages.adapters.layer import matrix_of
from stages.adapters.singular_vectors import singular_vectors
from stages.catalogue import adapter_kinds
from stages.contract import Inputs, Resources, Weights, Workspace
from stages.models.checkpoint_folder import open_folder
from stages.models.load_weights import load_conditioner, load_denoiser
from stages.records import AdapterSpec
from stages.train.dataset.batch import Batch
from stages.train.dataset.examples import Examples, load_examples
from stages.train.job import Job
from stages.train.model.network import Network, batch_losses, loss_scale
from stages.train.stage import TrainParams
from tests.benchmarks.bench_step0 import TINY, moved, networks, ours, relative, rounded_weights, velocity_BCT
from tests.golden.make_cached_artifact import FAMILY, copied

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Limits:
    """Largest relative differences from a float32 base (L2, but for the loss)."""

    velocity: float
    loss: float
    gradient: float
    """Over all adapter tensors together."""
    tensor: float
    """For any one tensor with at least a hundredth of the largest gradient."""


LIMITS = {BF16: Limits(3e-2, 3e-3, 3e-2, 8e-2), FP16: Limits(4e-3, 5e-4, 4e-3, 1.2e-2), FP32: Limits(0, 0, 0, 0)}
"""About twice what was measured over all kinds: bf16 1.3e-2, 1.1e-3, 1.3e-2, 3.8e-2, and fp16 an eighth of it, as
its mantissa has three bits more. For timesteps and durations that 16 bits hold exactly."""
ROUNDED_TIME = {BF16: 0.1, FP16: 0.06}
"""Limit for the velocity at any timestep: rounding it turns the fastest of its features (10000 turns per unit)
to anywhere, in the published models as here. Measured: bf16 5e-2, fp16 3e-2."""


@dataclass(frozen=True)
class Step:
    """Results of one training step."""

    velocity: Tensor
    """Over real frames."""
    loss: float
    gradients: list[Tensor]
    state: dict[str, Tensor]

    @property
    def gradient(self) -> Tensor:
        """All of it."""
        return torch.cat([tensor.flatten() for tensor in self.gradients])


@pytest.fixture(scope="module")
def weights() -> Weights:
    return open_folder("tiny-s", FAMILY)


@pytest.fixture(scope="module")
def examples(tmp_path_factory, weights) -> Examples:
    """Batches of two of the cached clips."""
    place = tmp_path_factory.mktemp("cached")
    inputs = Inputs(artifacts={"encode": copied("parquet", place)}, weights=weights)
    work = Workspace(directory=place, shared=place / "shared", resources=Resources(device="cpu"))
    return load_examples(Job.of(inputs, TrainParams(model="tiny-base", batch_size=2, pre_encode=True), work))


@pytest.fixture(scope="module")
def exact_batch(examples) -> Batch:
    """A batch whose timesteps, and durations as fractions of 384 s, are exact in 16 bits."""
    timesteps, durations = torch.tensor([0.5, 0.375]), torch.tensor([96.0, 192.0])
    return replace(examples.batch(0), timestep_B=timesteps, seconds_total_B=durations)


@cache
def bases() -> dict[str, dict[str, Tensor]]:
    """Singular vectors of the float32 base for every precision: those of a rounded weight may differ altogether."""
    found: dict[str, dict[str, Tensor]] = {}
    for root in (load_denoiser(open_folder("tiny-s", FAMILY)), load_conditioner(open_folder("tiny-s", FAMILY))):
        for name, module in root.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                vectors = singular_vectors(matrix_of(module.weight))
                found[f"{name}.weight"] = {"U": vectors.U_OK, "V": vectors.V_IK}
    return found


def step(kind: str, dtype: torch.dtype, weights: Weights, batch: Batch, state: dict[str, Tensor] | None = None) -> Step:
    """Velocity, loss and gradients with an adapter far from its initial values."""
    roots = load_denoiser(weights, dtype=dtype), load_conditioner(weights, dtype=dtype)
    given: dict[str, Any] = {"singular_vectors": bases()} if kind_named(kind).basis.singular else {}
    spec = AdapterSpec(kind=kind, rank=4, alpha=4.0)
    adapter = attach(roots, spec, generator=torch.Generator().manual_seed(1), **given)
    state = state or away_from_the_start(adapter.state())
    adapter.load(state, "a state in float32")
    network = Network(*roots, adapter)
    velocity_BCT = network.velocity(batch, batch.noise_BCT).float().detach()
    scale = loss_scale(batch, dtype)
    loss = batch_losses(network, batch, paired=True).total(1.0)
    gradients = torch.autograd.grad(loss * scale, list(adapter.named_parameters().values()))
    real_BCT = batch.real_BT[:, None].expand(velocity_BCT.shape)
    return Step(velocity_BCT[real_BCT], loss.item(), [gradient / scale for gradient in gradients], state)


def away_from_the_start(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Magnitudes changed by a twentieth, and a low-rank change of moderate size."""
    generator = torch.Generator().manual_seed(2)
    drawn = {key: 0.05 * torch.randn(tensor.shape, generator=generator) for key, tensor in state.items()}
    moved = {key: tensor * (1 + drawn[key]) if "magnitude" in key else drawn[key] for key, tensor in state.items()}
    return {key: state[key] if key.endswith("lora_A") else tensor for key, tensor in moved.items()}


@pytest.mark.parametrize("kind", adapter_kinds())
def test_a_step_on_a_16_bit_base_is_that_of_float32_to_its_rounding(kind, weights, exact_batch):
    exact = step(kind, FP32, weights, exact_batch)
    largest = max(gradient.norm() for gradient in exact.gradients)
    for dtype, limits in LIMITS.items():
        rounded = step(kind, dtype, weights, exact_batch, exact.state)
        assert relative(rounded.velocity, exact.velocity) <= limits.velocity
        assert abs(rounded.loss / exact.loss - 1) <= limits.loss
        assert (
            relative(*(torch.cat([g.flatten() for g in one.gradients]) for one in (rounded, exact))) <= limits.gradient
        )
        for found, wanted in zip(rounded.gradients, exact.gradients, strict=True):
            assert wanted.norm() < 0.01 * largest or relative(found, wanted) <= limits.tensor


@pytest.mark.parametrize(("dtype", "limit"), ROUNDED_TIME.items(), ids=str)
def test_at_any_timestep_the_rounding_of_time_comes_on_top(dtype, limit, weights, examples):
    exact = step("dora-rows", FP32, weights, examples.batch(0))
    rounded = step("dora-rows", dtype, weights, examples.batch(0), exact.state)
    assert LIMITS[dtype].velocity / 2 < relative(rounded.velocity, exact.velocity) <= limit


# The first step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", adapter_kinds())
def test_a_new_adapter_gives_the_base_s_own_velocity_to_float32_rounding(kind):
    # Weights are bf16 values, arithmetic is float32: only what the adapter does to the weights can be seen.
    assert moved(TINY, kind, ours, FP32)[0] < 1e-6


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("kind", adapter_kinds())
def test_a_new_adapter_on_a_16_bit_base_changes_less_than_that_base_s_own_rounding(kind, dtype):
    exact, roots = (networks(TINY, arithmetic, dtype) for arithmetic in (FP32, dtype))
    before = velocity_BCT(roots)
    attach(roots, AdapterSpec(kind=kind, rank=4, alpha=4.0), generator=torch.Generator().manual_seed(1))
    assert relative(velocity_BCT(roots), before) <= relative(before, velocity_BCT(exact))


@pytest.mark.parametrize("kind", [kind for kind in adapter_kinds() if kind_named(kind).has_magnitude])
def test_magnitudes_rounded_to_the_base_s_precision_would_not_be_the_base(kind):
    difference, changed = moved(TINY, kind, rounded_weights, FP32)
    assert difference > 1e-3
    assert changed > 0.05
