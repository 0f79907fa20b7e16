"""Update rules: AdamW by torch's fused kernel, or an optimiser of the package pytorch-optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.adapters.stacked.layer_group import StackedParameter
from stages.errors import PackageMissing
from stages.train.stage import TrainParams

_FUSED_DEVICES = ("cpu", "cuda")
"""Devices on which torch's fused AdamW takes `found_inf`, a flag in device memory that makes it change nothing."""

_MOMENTS = ("exp_avg", "exp_avg_sq")

PRODIGY_UNIT = 1e-4
"""The learning rate at which prodigy uses its own estimate unscaled."""


class UpdateRule(Protocol):
    """Turns gradients into updates of parameters."""

    capturable: bool
    """Whether a step can be captured in a CUDA graph: nothing in it depends on a value that the host reads."""

    def step(self, non_finite: Tensor) -> None:
        """Update every parameter; change nothing where the 0-d bool `non_finite` is True."""

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""

    def effective_rate(self) -> float:
        """What updates of the last step were multiplied by."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...


def update_rule(params: TrainParams, stacks: Sequence[StackedParameter]) -> UpdateRule:
    """The update rule that params ask for.

    Raises:
        PackageMissing: its package is not installed.
    """
    return FusedAdamW(params, stacks) if params.optimizer == "adamw" else ThirdPartyOptimizer(params, stacks)


def param_groups(params: TrainParams, stacks: Sequence[StackedParameter]) -> list[dict[str, Any]]:
    """Parameter groups by weight decay: one, or two where magnitudes are not decayed."""
    undecayed = [stack.parameter for stack in stacks if not params.decay_magnitudes and is_magnitude(stack)]
    decayed = [stack.parameter for stack in stacks if params.decay_magnitudes or not is_magnitude(stack)]
    both = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in both if group["params"]]


def is_magnitude(stack: StackedParameter) -> bool:
    """Whether a stack holds trained magnitudes (DoRA, BoRA) rather than factors."""
    return stack.keys[0].rpartition(".")[2].startswith("magnitude")


class FusedAdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), one kernel for all tensors.

    The kernel of `torch.optim.AdamW(fused=True)` is called here directly: that class imports torch's compiler on its
    first use, which takes two seconds. It is used only on devices where its fused kernel takes no flag.
    """

    def __init__(self, params: TrainParams, stacks: Sequence[StackedParameter]) -> None:
        device = stacks[0].parameter.device
        self.stacks, self.is_fused = stacks, device.type in _FUSED_DEVICES
        self.capturable = device.type == "cuda"
        self.betas, self.eps = params.betas, params.eps
        # On the device, so that a captured graph reads what the host has written there.
        self.rate: float | Tensor = params.learning_rate
        if self.capturable:
            self.rate = torch.tensor(params.learning_rate, device=device)
        self.groups = param_groups(params, stacks)
        self.moments: dict[Tensor, dict[str, Tensor]] = {}
        """`step`, `exp_avg` and `exp_avg_sq` of every parameter that has been updated."""
        self.fallback: torch.optim.AdamW | None = None
        if not self.is_fused:
            self.fallback = torch.optim.AdamW(self.groups, lr=self.rate, betas=self.betas, eps=self.eps)
            self.moments = self.fallback.state
        self.current_rate = params.learning_rate

    def set_rate(self, rate: float) -> None:
        if rate == self.current_rate:
            return
        self.current_rate = rate
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            self.rate = rate

    def effective_rate(self) -> float:
        return self.current_rate

    def step(self, non_finite: Tensor) -> None:
        if self.fallback is None:
            found_inf = non_finite.float()
            for group in self.groups:
                self._update(group["params"], group["weight_decay"], found_inf)
        elif not bool(non_finite):
            for group in self.fallback.param_groups:
                group["lr"] = self.rate
            self.fallback.step()

    @torch.no_grad()
    def _update(self, parameters: Sequence[nn.Parameter], weight_decay: float, found_inf: Tensor) -> None:
        """What torch's class does with one parameter group; nothing changes where `found_inf` is 1."""
        moments = [self._moments_of(parameter) for parameter in parameters]
        steps = [each["step"] for each in moments]
        torch._foreach_add_(steps, 1)
        update: Any = torch._fused_adamw_  # mypy: neither overload takes a rate that may be a float or a tensor
        update(
            list(parameters),
            [parameter.grad for parameter in parameters],
            *([each[name] for each in moments] for name in _MOMENTS),
            [],
            steps,
            amsgrad=False,
            lr=self.rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
            grad_scale=None,
            found_inf=found_inf,
        )
        torch._foreach_sub_(steps, [found_inf] * len(steps))

    def _moments_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Moments of one parameter; zeros before its first update."""
        if parameter not in self.moments:
            zeros = {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
            self.moments[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
        return self.moments[parameter]

    def state(self) -> dict[str, Tensor]:
        """CPU copies of the moments: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
        held: dict[str, Tensor] = {}
        for stack in self.stacks:
            for moment, value in self.moments.get(stack.parameter, {}).items():
                for name, one in zip(stack.keys, split_by_key(value, stack), strict=True):
                    held[f"{moment}.{name}"] = one.detach().to("cpu", copy=True)
        return held

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the moments that `state` returned, to the bit."""
        for stack in self.stacks:
            if f"step.{stack.keys[0]}" in state:
                moments = {
                    moment: join_keys([state[f"{moment}.{name}"] for name in stack.keys], stack) for moment in _MOMENTS
                }
                step = state[f"step.{stack.keys[0]}"].to(stack.parameter.device if self.is_fused else "cpu", copy=True)
                self.moments[stack.parameter] = {"step": step, **moments}


class ThirdPartyOptimizer:
    """An optimiser of the package pytorch-optimizer; the host reads `non_finite` at every step."""

    capturable = False

    def __init__(self, params: TrainParams, stacks: Sequence[StackedParameter]) -> None:
        self.stacks = stacks
        self.rate_unit = PRODIGY_UNIT if params.optimizer == "prodigy" else 1.0
        kind = _class_of(params.optimizer)
        # Lion's second beta means something else than Adam's, so lion keeps its own defaults.
        betas = {"betas": params.betas} if params.optimizer == "prodigy" else {}
        self.optimizer = kind(
            param_groups(params, stacks), lr=params.learning_rate / self.rate_unit, weight_decouple=True, **betas
        )

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step; for prodigy a factor of the rate that it estimates itself."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate / self.rate_unit

    def effective_rate(self) -> float:
        """The learning rate; for prodigy times its estimate d_k (Mishchenko & Defazio 2023, arXiv:2306.06101)."""
        group = self.optimizer.param_groups[0]
        return float(group["lr"] * group.get("d", 1.0))

    def step(self, non_finite: Tensor) -> None:
        if not bool(non_finite):
            self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """The optimiser's state: `state.<stack>.<name>` and, for numbers, `group.<group>.<name>`."""
        held = self.optimizer.state_dict()
        found = {
            f"state.{index}.{name}": as_tensor(value)
            for index, entry in held["state"].items()
            for name, value in entry.items()
        }
        numbers = {
            f"group.{index}.{name}": as_tensor(value)
            for index, group in enumerate(held["param_groups"])
            for name, value in group.items()
            if isinstance(value, int | float | Tensor)
        }
        return found | numbers

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        held = self.optimizer.state_dict()
        for name, value in state.items():
            section, index, leaf = name.split(".", 2)
            groups = held["param_groups"]
            target = held["state"].setdefault(int(index), {}) if section == "state" else groups[int(index)]
            target[leaf] = value.item() if is_number(value) else value.clone()
        self.optimizer.load_state_dict(held)


def as_tensor(value: Any) -> Tensor:
    """A CPU copy; numbers become 0-d tensors of 64 bits, so that they come back unchanged."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def is_number(value: Tensor) -> bool:
    """Whether `as_tensor` made it from a number: tensors of the optimiser have 32 bits."""
    return value.dim() == 0 and value.dtype in (torch.float64, torch.int64)


def _class_of(name: str) -> Any:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise PackageMissing(f"optimizer {name}", "pytorch-optimizer") from error
    return {"prodigy": pytorch_optimizer.Prodigy, "lion": pytorch_optimizer.Lion}[name]


def split_by_key(value: Tensor, stack: StackedParameter) -> Sequence[Tensor]:
    """One tensor per key of the stack; a 0-d value, such as the count of steps, is the same for all."""
    return [value] * len(stack.keys) if stack.unstacked or value.dim() == 0 else value.unbind(0)


def join_keys(values: Sequence[Tensor], stack: StackedParameter) -> Tensor:
    """The inverse of `split_by_key`, on the device of the stack."""
    value = values[0] if stack.unstacked else torch.stack(list(values))
    return value.to(stack.parameter.device, copy=True)
