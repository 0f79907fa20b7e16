"""The optimiser: AdamW's arithmetic, weight decay, skipped non-finite updates, its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.train.optim import update_rules
from stages.train.optim.optimizer import Optimizer
from stages.train.stage import TrainParams


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in (("a", (3, 4)), ("b", (5,)))}


def params(**changes):
    return TrainParams(model="tiny-base", **{"learning_rate": 1e-2, **changes})


def loss_of(tensors, factor=1.0):
    return sum((tensor * factor).sin().sum() for tensor in tensors.values())


def take_step(optimizer, loss, scale=1.0):
    """One update along the gradient of `loss`; returns the norm of that gradient."""
    optimizer.zero_grad()
    (loss * scale).backward()
    return optimizer.apply_gradients(loss.detach(), scale)


def values(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_update_is_the_textbook_s():
    tensors = parameters()
    before, optimizer = values(tensors), Optimizer(tensors, params(weight_decay=0.1, betas=(0.9, 0.95)))
    take_step(optimizer, loss_of(tensors))
    for name, start in before.items():
        gradient = start.cos()
        # After one step both bias-corrected moments are the gradient and its square.
        expected = start * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(tensors[name].detach(), expected)


@pytest.mark.parametrize("decay_magnitudes", [True, False])
def test_updates_have_the_bits_of_torch_s_own_class(decay_magnitudes):
    ours, theirs = ({f"layer.{name}": one for name, one in parameters().items()} for _ in range(2))
    ours["layer.magnitude"], theirs["layer.magnitude"] = (nn.Parameter(torch.ones(4)) for _ in range(2))
    asked = params(weight_decay=0.1, betas=(0.9, 0.95), decay_magnitudes=decay_magnitudes)
    optimizer = Optimizer(ours, asked)
    magnitude = theirs["layer.magnitude"]
    others = [one for one in theirs.values() if one is not magnitude]
    kept = {"params": [magnitude], "weight_decay": 0.1 if decay_magnitudes else 0.0}
    adamw = torch.optim.AdamW([{"params": others}, kept], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for _ in range(5):
        take_step(optimizer, loss_of(ours))
        adamw.zero_grad()
        loss_of(theirs).backward()
        adamw.step()
    assert same(values(ours), values(theirs))


def test_an_update_returns_the_norm_of_the_whole_gradient():
    tensors = parameters()
    expected = torch.cat([tensor.detach().cos().flatten() for tensor in tensors.values()]).norm()
    torch.testing.assert_close(take_step(Optimizer(tensors, params()), loss_of(tensors)), expected)


def test_gradients_of_earlier_steps_are_dropped():
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    take_step(optimizer, loss_of(tensors))
    take_step(optimizer, sum(tensor.sum() for tensor in tensors.values()))
    assert all(torch.equal(tensor.grad, torch.ones_like(tensor)) for tensor in tensors.values())


@pytest.mark.parametrize("scale", [2.0**-3, 2.0**12])
def test_scaling_the_loss_by_a_power_of_two_changes_no_bit(scale):
    plain, scaled = parameters(), parameters()
    for tensors, factor in ((plain, 1.0), (scaled, scale)):
        optimizer = Optimizer(tensors, params())
        norms = [take_step(optimizer, loss_of(tensors), factor) for _ in range(3)]
        assert optimizer.non_finite.item() is False
        assert all(norm.isfinite() for norm in norms)
    assert same(values(plain), values(scaled))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_update_is_skipped_and_so_is_every_later_one(poison):
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    take_step(optimizer, loss_of(tensors))
    before, moments = values(tensors), optimizer.state()
    take_step(optimizer, loss_of(tensors) * poison)
    assert bool(optimizer.non_finite)
    take_step(optimizer, loss_of(tensors))
    assert same(values(tensors), before)
    assert same(optimizer.state(), moments)


def test_a_finite_loss_with_a_non_finite_gradient_is_skipped_too():
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    before = values(tensors)
    # d/dx sqrt(x) at 0 is infinite, its value is 0.
    take_step(optimizer, (tensors["b"] - tensors["b"].detach()).sqrt().sum())
    assert bool(optimizer.non_finite)
    assert same(values(tensors), before)


def test_after_clearing_the_flag_updates_continue_as_if_nothing_had_happened():
    spoiled, plain = parameters(), parameters()
    for tensors in (spoiled, plain):
        optimizer = Optimizer(tensors, params())
        take_step(optimizer, loss_of(tensors))
        if tensors is spoiled:
            take_step(optimizer, loss_of(tensors) * float("nan"))
            optimizer.clear_non_finite()
        take_step(optimizer, loss_of(tensors))
    assert same(values(spoiled), values(plain))


def test_on_devices_without_the_fused_kernel_the_host_skips_the_update(monkeypatch):
    monkeypatch.setattr(update_rules, "_FUSED_DEVICES", ())
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    assert optimizer.rule.fallback is not None
    before = values(tensors)
    take_step(optimizer, loss_of(tensors) * float("nan"))
    assert same(values(tensors), before)
    optimizer.clear_non_finite()
    optimizer.begin_step(0)
    take_step(optimizer, loss_of(tensors))
    assert not same(values(tensors), before)
    assert optimizer.state().keys() == {f"{what}.{name}" for what in ("step", "exp_avg", "exp_avg_sq") for name in "ab"}


def test_restored_moments_continue_to_the_same_bit():
    whole, stopped = parameters(), parameters()
    optimizer = Optimizer(whole, params())
    for _ in range(4):
        take_step(optimizer, loss_of(whole))

    first = Optimizer(stopped, params())
    for _ in range(2):
        take_step(first, loss_of(stopped))
    state, resumed = first.state(), {name: nn.Parameter(tensor) for name, tensor in values(stopped).items()}
    second = Optimizer(resumed, params())
    second.load(state)
    for _ in range(2):
        take_step(second, loss_of(resumed))

    assert same(values(resumed), values(whole))
    assert same(second.state(), optimizer.state())


def test_saved_moments_do_not_change_with_training():
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    take_step(optimizer, loss_of(tensors))
    state = optimizer.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    take_step(optimizer, loss_of(tensors))
    assert same(state, kept)


def test_a_non_finite_flag_survives_discarded_updates():
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    take_step(optimizer, loss_of(tensors) * float("nan"))
    with optimizer.discarding_updates():
        take_step(optimizer, loss_of(tensors))
    assert bool(optimizer.non_finite)


def test_discarded_updates_are_not_counted():
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    before = values(tensors)
    with optimizer.discarding_updates():
        take_step(optimizer, loss_of(tensors))
    assert (optimizer.num_updates, bool(optimizer.non_finite)) == (0, False)
    assert same(values(tensors), before)
    take_step(optimizer, loss_of(tensors))
    assert optimizer.num_updates == 1
