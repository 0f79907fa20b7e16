"""Cases of the diffusion transformer, `dit_*` and `distribution_shift`; its networks for other checkers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.load_weights import load_denoiser
from stages.models.nets.attention.attention import masked_attention, replace_attention
from stages.models.nets.attention.interface import AttentionFunction
from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.guidance import Guidance, guided_velocity
from stages.models.nets.dit.samplers import sampling_schedule
from stages.models.nets.dit.timestep_shift import shifted
from stages.models.nets.dit.transformer import Denoiser
from tests.parity.conditioning import conditioner, conditioning, text_encoder
from tests.parity.frame import Case, Comparison, Family, checks, compare


def denoiser(family: Family) -> Denoiser:
    """The family's denoiser, loaded once and shared: changes must be undone."""
    return family.once("denoiser", lambda: load_denoiser(family.weights))


def value_zeroing_attention(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    """Attention of the reference without its packed kernels: padding keys keep their softmax mass.

    Never an option of the product; it exists to compare with records made on a CPU.
    """
    if valid is not None:
        value = value.masked_fill(~valid[:, None, :, None], 0)
    return F.scaled_dot_product_attention(query, key, value)


@contextmanager
def attending(network: torch.nn.Module, function: AttentionFunction) -> Iterator[None]:
    """Context in which every attention layer of `network` calls `function`."""
    replace_attention(network, function)
    try:
        yield
    finally:
        replace_attention(network, masked_attention)


@checks(r"dit_forward")
@torch.no_grad()
def denoised(family: Family, case: Case) -> Iterator[Comparison]:
    network, tensors = denoiser(family), case.tensors
    made = conditioning(family, case.params["prompts"], case.params["seconds_total"])
    yield compare(case, "cond_cross_attn_cond", made.context_BSE)
    yield compare(case, "cond_global_cond", made.global_BE)
    local = torch.cat([tensors["inpaint_mask"], tensors["inpaint_masked_input"]], dim=1)
    yield compare(case, "cond_local_add_cond", local)
    inputs = (tensors["x"], tensors["t"], made, tensors["inpaint_mask"], tensors["inpaint_masked_input"])
    padding = tensors["padding_mask"]
    hidden, outputs = _with_hidden(network, inputs)
    for name in (name for name in case.tensors if name.startswith("hidden_nopad_layer")):
        yield compare(case, name, hidden[int(name.removeprefix("hidden_nopad_layer"))])
    for name in ("out_nopad", "out_nopad_check"):
        if case.has(name):
            yield compare(case, name, outputs)
    where = padding[:, None]
    yield compare(case, "out_pad_masked", network(*inputs, padding), where=where)
    with attending(network, value_zeroing_attention):
        yield compare(case, "out_pad_vzero", network(*inputs, padding), where=where)
        dropped = torch.arange(len(padding)) == 1
        yield compare(case, "out_row1_dropped", network(*inputs, padding, dropped_B=dropped), where=where)


def _with_hidden(network: Denoiser, inputs: tuple[Any, ...]) -> tuple[list[Tensor], Tensor]:
    """Tokens after each block, and the output."""
    hidden: list[Tensor] = []
    layers = network.model.transformer.layers
    hooks = [layer.register_forward_hook(lambda _module, _inputs, out: hidden.append(out)) for layer in layers]
    try:
        return hidden, network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


_GUIDANCE: dict[str, tuple[Guidance, dict[str, bool]]] = {
    "out_cfg1": (Guidance(), {}),
    "out_cfg1_nopad": (Guidance(), {"padded": False}),
    "out_cfg4": (Guidance(scale=4), {}),
    "out_cfg4_nopad": (Guidance(scale=4), {"padded": False}),
    "out_cfg7": (Guidance(scale=7), {}),
    "out_cfg7_nopad": (Guidance(scale=7), {"padded": False}),
    "out_cfg4_apg0": (Guidance(scale=4, projection=0), {}),
    "out_cfg4_apg05": (Guidance(scale=4, projection=0.5), {}),
    "out_cfg4_phi05": (Guidance(scale=4, rescale=0.5), {}),
    "out_cfg4_norm2": (Guidance(scale=4, norm_threshold=2.0), {}),
    "out_cfg4_interval_off": (Guidance(scale=4, interval=(0.7, 1.0)), {}),
    "out_cfg4_negative": (Guidance(scale=4), {"negative": True}),
    "out_cfg4_masked": (Guidance(scale=4), {"masked": True}),
}


@checks(r"dit_cfg")
@torch.no_grad()
def guided(family: Family, case: Case) -> Iterator[Comparison]:
    network, tensors, padding = denoiser(family), case.tensors, case.tensors["padding_mask"]
    made = conditioning(family, case.params["prompts"], case.params["seconds_total"])
    negative = negative_context(family, case.params["negative_prompts"], made)
    for name in (name for name in case.tensors if name.startswith("out_")):
        guidance, how = _GUIDANCE[name]
        function = masked_attention if how.get("masked") else value_zeroing_attention
        with attending(network, function):
            out = guided_velocity(
                network,
                tensors["x"],
                tensors["t"],
                made,
                guidance,
                negative_context_BSE=negative if how.get("negative") else None,
                inpaint_mask_B1T=tensors["inpaint_mask"],
                masked_latents_BCT=tensors["inpaint_masked_input"],
                padding_mask_BT=padding if how.get("padded", True) else None,
            )
        yield compare(case, name, out, where=padding[:, None] if how.get("padded", True) else None)


def negative_context(family: Family, prompts: list[str], positive: Conditioning) -> Tensor:
    """The context of negative prompts: zeros at padding positions, the duration token of the positive ones."""
    hidden = text_encoder(family).hidden_states(prompts)
    padded = conditioner(family).padded_prompts(hidden, learned_padding=False)
    return torch.cat([padded, positive.context_BSE[:, -1:]], dim=1)


_SHIFTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full_sine": {"type": "full", "use_sine": True},
    "flux": {"type": "flux", "alpha_min": 1.0, "alpha_max": 3.5, "min_length": 256, "max_length": 4096},
    "logsnr_sampling": {"type": "logsnr", "rate": 0.0, "logsnr_end": 2.0, "anchor_logsnr": -6.2},
    "logsnr_adaptive": {
        "type": "logsnr",
        "rate": 1.0,
        "logsnr_end": 2.0,
        "anchor_logsnr": -6.2,
        "anchor_length": 2000,
    },
}


@checks(r"distribution_shift")
def shifts(family: Family, case: Case) -> Iterator[Comparison]:
    lengths = torch.tensor(case.params["lengths"])
    own = family.config["model"]["diffusion"]["distribution_shift_options"]
    for name in case.entry["outputs"]:
        kind = name.removesuffix("_scalar")
        if kind.startswith("schedule_"):
            batch, num_steps = case.tensors[name].shape[0], int(kind.removeprefix("schedule_"))
            yield compare(case, name, sampling_schedule(num_steps, torch.ones(batch)))
        else:
            options = own if kind == "full" else _SHIFTS[kind]
            yield compare(case, name, shifted(case.tensors["t"][:, None], lengths, options))
