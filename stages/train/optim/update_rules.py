"""How a gradient becomes an update: torch's AdamW, or what a library of optimisers offers.

A rule has `step(broken)`, which leaves everything as it is once `broken` is set, `set_rate`, `state` and `load`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.adapters.stacked.layer_group import StackedParameter
from stages.errors import PackageMissing
from stages.train.stage import TrainParams

_GUARDED_DEVICES = ("cpu", "cuda")
"""Where torch's fused AdamW takes a flag, on the device, that makes it leave everything as it is."""

_MOMENTS = ("exp_avg", "exp_avg_sq")

PRODIGY_UNIT = 1e-4
"""The learning rate at which prodigy takes its own estimate as it is."""


class Rule(Protocol):
    """What an optimiser does with gradients."""

    capturable: bool
    """Whether a step can be recorded for the device: no look from the host decides anything."""

    def step(self, broken: Tensor) -> None: ...

    def set_rate(self, rate: float) -> None: ...

    def effective_rate(self) -> float:
        """Of the last step, by which updates were multiplied."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...


def update_rule(params: TrainParams, stacks: Sequence[StackedParameter]) -> Rule:
    """The rule a training asks for.

    Raises:
        PackageMissing: it is of a library that is not there.
    """
    return FusedAdamW(params, stacks) if params.optimizer == "adamw" else ThirdPartyOptimizer(params, stacks)


def groups(params: TrainParams, stacks: Sequence[StackedParameter]) -> list[dict[str, Any]]:
    """Tensors by their weight decay: one group, or magnitudes apart, which nothing pulls on."""
    kept = [stack.parameter for stack in stacks if not params.decay_magnitudes and is_magnitude(stack)]
    pulled = [stack.parameter for stack in stacks if params.decay_magnitudes or not is_magnitude(stack)]
    both = [{"params": pulled, "weight_decay": params.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in both if group["params"]]


def is_magnitude(stack: StackedParameter) -> bool:
    """Whether a stack holds trained lengths rather than directions."""
    return stack.keys[0].rpartition(".")[2].startswith("magnitude")


class FusedAdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), one kernel for all tensors.

    The kernel of `torch.optim.AdamW(fused=True)` is called here directly: that class imports torch's compiler on its
    first use, which takes two seconds. It stands in only where its fused kernel takes no flag.
    """

    def __init__(self, params: TrainParams, stacks: Sequence[StackedParameter]) -> None:
        device = stacks[0].parameter.device
        self.stacks, self.guarded = stacks, device.type in _GUARDED_DEVICES
        self.capturable = device.type == "cuda"
        self.betas, self.eps = params.betas, params.eps
        # On the device, so that a recorded step reads what the host has written there.
        self.rate: float | Tensor = params.learning_rate
        if self.capturable:
            self.rate = torch.tensor(params.learning_rate, device=device)
        self.groups = groups(params, stacks)
        self.moments: dict[Tensor, dict[str, Tensor]] = {}
        """`step`, `exp_avg` and `exp_avg_sq` of every parameter that has been updated."""
        self.unguarded: torch.optim.AdamW | None = None
        if not self.guarded:
            self.unguarded = torch.optim.AdamW(self.groups, lr=self.rate, betas=self.betas, eps=self.eps)
            self.moments = self.unguarded.state
        self.set_to = params.learning_rate

    def set_rate(self, rate: float) -> None:
        """Of the next step."""
        if rate == self.set_to:
            return
        self.set_to = rate
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            self.rate = rate

    def effective_rate(self) -> float:
        return self.set_to

    def step(self, broken: Tensor) -> None:
        if self.unguarded is None:
            found_inf = broken.float()
            for group in self.groups:
                self._update(group["params"], group["weight_decay"], found_inf)
        elif not bool(broken):
            for group in self.unguarded.param_groups:
                group["lr"] = self.rate
            self.unguarded.step()

    @torch.no_grad()
    def _update(self, parameters: Sequence[nn.Parameter], weight_decay: float, found_inf: Tensor) -> None:
        """What torch's class does with one group of parameters; nothing changes where `found_inf` is 1."""
        moments = [self._moments_of(parameter) for parameter in parameters]
        steps = [each["step"] for each in moments]
        torch._foreach_add_(steps, 1)
        update: Any = torch._fused_adamw_  # its overloads leave out a rate that may be either
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
        """Those of one parameter; zeros before its first update."""
        if parameter not in self.moments:
            zeros = {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
            self.moments[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
        return self.moments[parameter]

    def state(self) -> dict[str, Tensor]:
        """CPU copies of the moments: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
        held: dict[str, Tensor] = {}
        for stack in self.stacks:
            for moment, value in self.moments.get(stack.parameter, {}).items():
                for name, one in zip(stack.keys, parts(value, stack), strict=True):
                    held[f"{moment}.{name}"] = one.detach().to("cpu", copy=True)
        return held

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take moments back, exactly as `state` gave them."""
        for stack in self.stacks:
            if f"step.{stack.keys[0]}" in state:
                moments = {
                    moment: whole([state[f"{moment}.{name}"] for name in stack.keys], stack) for moment in _MOMENTS
                }
                step = state[f"step.{stack.keys[0]}"].to(stack.parameter.device if self.guarded else "cpu", copy=True)
                self.moments[stack.parameter] = {"step": step, **moments}


class ThirdPartyOptimizer:
    """An optimiser of the package pytorch-optimizer; the host looks at every step whether it may be made."""

    capturable = False

    def __init__(self, params: TrainParams, stacks: Sequence[StackedParameter]) -> None:
        self.stacks = stacks
        self.unit = PRODIGY_UNIT if params.optimizer == "prodigy" else 1.0
        made = _class_of(params.optimizer)
        # Lion's second beta is another thing than Adam's, so each keeps its own.
        betas = {"betas": params.betas} if params.optimizer == "prodigy" else {}
        self.rule = made(groups(params, stacks), lr=params.learning_rate / self.unit, weight_decouple=True, **betas)

    def set_rate(self, rate: float) -> None:
        """Of the next step; for prodigy a factor of the rate that it finds itself."""
        for group in self.rule.param_groups:
            group["lr"] = rate / self.unit

    def effective_rate(self) -> float:
        """For prodigy the factor times what it has found (Mishchenko & Defazio 2023, arXiv:2306.06101, d_k)."""
        group = self.rule.param_groups[0]
        return float(group["lr"] * group.get("d", 1.0))

    def step(self, broken: Tensor) -> None:
        if not bool(broken):
            self.rule.step()

    def state(self) -> dict[str, Tensor]:
        """Everything the rule remembers: `state.<stack>.<name>` and, for numbers, `group.<group>.<name>`."""
        held = self.rule.state_dict()
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
        """Take back what `state` gave."""
        held = self.rule.state_dict()
        for name, value in state.items():
            room, index, leaf = name.split(".", 2)
            place = held["state"].setdefault(int(index), {}) if room == "state" else held["param_groups"][int(index)]
            place[leaf] = value.item() if is_number(value) else value.clone()
        self.rule.load_state_dict(held)


def as_tensor(value: Any) -> Tensor:
    """A CPU copy; numbers in 64 bits, so that they come back as they were."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def is_number(value: Tensor) -> bool:
    """Whether `as_tensor` made it of a number: parameters and what goes with them have 32 bits."""
    return value.dim() == 0 and value.dtype in (torch.float64, torch.int64)


def _class_of(name: str) -> Any:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise PackageMissing(f"optimizer {name}", "pytorch-optimizer") from error
    return {"prodigy": pytorch_optimizer.Prodigy, "lion": pytorch_optimizer.Lion}[name]


def parts(value: Tensor, stack: StackedParameter) -> Sequence[Tensor]:
    """One entry per key; the count of steps is the same for all."""
    return [value] * len(stack.keys) if stack.unstacked or value.dim() == 0 else value.unbind(0)


def whole(values: Sequence[Tensor], stack: StackedParameter) -> Tensor:
    """What `parts` took apart, on the device of the stack."""
    value = values[0] if stack.unstacked else torch.stack(list(values))
    return value.to(stack.parameter.device, copy=True)
