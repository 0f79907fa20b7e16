"""Cases of training: `train_*`, from recorded draws to weights after AdamW steps, and the laws in `file:statistics`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.adapters.attach import Adapter, attach
from stages.adapters.kind import kind_named
from stages.models.nets.attention.attention import masked_attention
from stages.records import AdapterSpec
from stages.train.dataset.batch import Batch
from stages.train.dataset.examples import shift_options
from stages.train.dataset.inpainting_masks import causal, full, inpainting_mask, segments, spans
from stages.train.dataset.ot_coupling import pairing
from stages.train.dataset.timesteps import effective_frames, truncated_logistic_normal
from stages.train.model.network import Network
from stages.train.model.rectified_flow import losses, noised, velocity
from stages.train.optim.optimizer import Optimizer
from stages.train.record.layer_norms import group_names
from stages.train.record.metrics import MetricsHistory
from stages.train.rng import StepRng, silence_extensions
from stages.train.stage import TrainParams
from stages.train.training import Training
from tests.parity.conditioning import conditioner, text_encoder
from tests.parity.frame import Case, Comparison, Family, checks, compare, compare_group, exact, graded
from tests.parity.transformer import attending, denoiser, shifted, value_zeroing_attention

# B clips, C latent channels, T frames.


@checks(r"train_inputs")
def recorded_draws(family: Family, case: Case) -> Iterator[Comparison]:
    """The case only records draws: they must be the kinds of draws that our step makes."""
    real, extended = case.tensors["padding_mask"], case.tensors["augmented_padding_mask"]
    given = case.tensors["inpaint_mask"][:, :, 0].bool()
    yield exact("augmented_padding_mask (covers the padding mask)", extended | real, extended)
    yield exact("augmented_padding_mask (is a prefix)", extended.long().cummin(dim=-1).values.bool(), extended)
    yield exact("inpaint_mask (gives real frames only)", given & extended, given)


@checks(r"train_schedule")
def schedule(family: Family, case: Case) -> Iterator[Comparison]:
    lengths = frames_of(family)
    before = 1.0 - family.case("train_inputs").tensors["u"]
    yield compare(case, "effective_length", lengths)
    yield compare(case, "t_before_shift", before)
    yield compare(case, "t", shifted(before, lengths, shift_options(family.config)))


def frames_of(family: Family) -> Tensor:
    """Effective length of each recorded clip."""
    sizes = family.weights.sizes
    seconds = family.index["train_metadata"]["seconds_total"]
    return torch.tensor([effective_frames(each, sizes.sample_rate_hz, sizes.downsampling_ratio) for each in seconds])


def recorded_batch(family: Family, step: int) -> Batch:
    """The batch of one recorded step, from its recorded draws.

    With the recorded timesteps too, which ours equal but for the last bit: that bit turns the features of t by 6e-3.
    """
    drawn, told = family.case("train_inputs").tensors, family.index["train_metadata"]
    count = len(told["prompts"])
    return Batch(
        clip_ids=tuple(told["prompts"]),
        crop_starts=(0,) * count,
        latents_BCT=drawn["latents"],
        noise_BCT=drawn["noise"][step],
        timestep_B=family.case("train_schedule").tensors["t"][step],
        real_BT=drawn["augmented_padding_mask"][step],
        given_BT=drawn["inpaint_mask"][step, :, 0].bool(),
        dropped_B=torch.zeros(count, dtype=torch.bool),
        seconds_total_B=torch.tensor(told["seconds_total"], dtype=torch.float32),
        hidden=tuple(text_encoder(family).hidden_states(told["prompts"])),
        all_real=False,
    )


@checks(r"train_(?!inputs|schedule).*")
def trained(family: Family, case: Case) -> Iterator[Comparison]:
    """One step part by part, then all steps through the product's own loop body."""
    function = masked_attention if case.name.endswith("_masked") else value_zeroing_attention
    with attending(denoiser(family), function), adapted(family, case) as adapter:
        network = Network(denoiser(family), conditioner(family), adapter)
        yield from first_step(family, case, network)
        adapter.load(case.group("init:"), case.name)
        yield from all_steps(family, case, network)


@contextmanager
def adapted(family: Family, case: Case) -> Iterator[Adapter]:
    """The recorded initial adapter attached to the family's networks; -xs kinds use the recorded singular vectors."""
    params = case.params
    spec = AdapterSpec(kind=params["adapter_type"], rank=params["rank"], alpha=params["alpha"])
    bases = recorded_bases(family, spec.rank) if kind_named(spec.kind).basis.singular else None
    adapter = attach((denoiser(family), conditioner(family)), spec, singular_vectors=bases)
    try:
        adapter.load(case.group("init:"), case.name)
        yield adapter
    finally:
        adapter.detach()


def recorded_bases(family: Family, rank: int) -> dict[str, dict[str, Tensor]]:
    """Leading singular vectors by weight, from the adapter case that holds them."""
    bases: dict[str, dict[str, Tensor]] = {}
    for name, vectors in family.case("adapter_lora-xs_r4").group("svd:").items():
        module, side = name.split(".parametrizations.weight.0.")
        bases.setdefault(f"{module}.weight", {})[side] = vectors[:, :rank]
    return bases


def first_step(family: Family, case: Case, network: Network) -> Iterator[Comparison]:
    batch = recorded_batch(family, 0)
    noise = batch.noise_BCT[pairing(batch.latents_BCT, batch.noise_BCT)]
    target = velocity(batch.latents_BCT, noise)
    predicted = network.velocity(batch, noise)
    parts = losses(predicted, target, batch.real_BT, batch.given_BT)
    total = parts.total(1.0)
    total.backward()
    before = 1.0 - family.case("train_inputs").tensors["u"][0]
    yield compare(case, "step0_t", shifted(before, frames_of(family), shift_options(family.config)))
    yield compare(case, "step0_x", noised(batch.latents_BCT, noise, batch.timestep_B))
    yield compare(case, "step0_targets", target)
    yield compare(case, "step0_output", predicted, where=batch.real_BT[:, None])
    yield compare(case, "step0_loss_mask", batch.real_BT & ~batch.given_BT)
    yield compare(case, "step0_loss_total", total)
    yield compare(case, "step0_loss_generated_part", parts.generated_B.mean())
    yield compare(case, "step0_loss_context_part", parts.context_B.mean())
    gradients = {key: parameter.grad for key, parameter in network.adapter.named_parameters().items()}
    yield from compare_group(case, "step0_grad:", gradients)
    for parameter in network.adapter.named_parameters().values():
        parameter.grad = None


def all_steps(family: Family, case: Case, network: Network) -> Iterator[Comparison]:
    params = TrainParams(model=family.name, learning_rate=1e-3, batch_size=len(frames_of(family)))
    optimizer = Optimizer(network.adapter.named_parameters(), params)
    training = Training(
        network=network,
        optimizer=optimizer,
        history=MetricsHistory.empty(len(group_names(optimizer.stacks))),
        params=params,
        device=torch.device("cpu"),
        notes={},
    )
    for step in range(case.params["steps"]):
        training.advance(recorded_batch(family, step))
        recorded = f"after_step{step + 1}:"
        if case.group(recorded):
            yield from compare_group(case, recorded, network.adapter.state())
    training.history.flush()
    yield compare(case, "losses", torch.from_numpy(training.history.losses(1.0)))


# Laws of the random draws ---------------------------------------------------------------------------------------------

_STANDARD_ERRORS = 5.0
"""Standard errors: two samples of one distribution differ by more about once in two million comparisons."""


@checks(r"file:statistics")
def laws(family: Family, case: Case) -> Iterator[Comparison]:
    yield from timestep_law(case.params["truncated_logistic_normal"])
    for row in case.params["silence_extension"]["rows"]:
        yield from silence_law(row, case.params["silence_extension"]["scale_tokens"])
    for row in case.params["inpaint_masks"]:
        yield from mask_law(row)


def timestep_law(recorded: Mapping[str, Any]) -> Iterator[Comparison]:
    """Our transform of normal quantiles gives the recorded quantiles."""
    levels = torch.tensor(recorded["quantile_levels"], dtype=torch.float64)
    ours = truncated_logistic_normal(torch.special.ndtri(levels).numpy())
    worst = float(np.abs(ours - np.array(recorded["analytic_quantiles"])).max())
    yield graded("truncated_logistic_normal analytic_quantiles", worst, 1e-6)
    sample = np.array(recorded["sample_quantiles"])
    # The record's own sample: a million draws, so quantiles are good to a few thousandths at worst.
    yield graded("truncated_logistic_normal sample_quantiles", float(np.abs(ours - sample).max()), 2e-3)


def silence_law(row: Mapping[str, Any], mean_frames: float) -> Iterator[Comparison]:
    """As many extensions as recorded, clamped to the sequence."""
    room, count = row["length"] - row["valid"], row["draws"]
    ours = np.minimum(silence_extensions(StepRng(0).generator("silence", row["valid"]), count, mean_frames), room)
    name = f"silence_extension {row['valid']} of {row['length']}"
    spread = max(ours.std(), 1e-9)
    yield within(f"{name} mean", ours.mean(), row["mean_extension"], spread, count)
    for what, probability in (("p_no_extension", (ours == 0).mean()), ("p_full", (ours == room).mean())):
        yield within(f"{name} {what}", probability, row[what], binomial(probability), count)


def mask_law(row: Mapping[str, Any]) -> Iterator[Comparison]:
    """Generated fraction, number of generated segments and their positions, over as many masks as recorded."""
    if not row["mask_padding"]:
        # The reference can also leave padding out of the mask; ours is never given there, so only real frames compare.
        row = {**row, "padding_kept_fraction": 0.0}
    name = f"inpaint_masks {row['type']} {row['valid']} of {row['length']}, mask_padding {row['mask_padding']}"
    given = np.stack([drawn_mask(row, number) for number in range(row["draws"])])
    generated = ~given[:, : row["valid"]]
    fraction = generated.mean(axis=1)
    count = row["draws"]
    yield within(f"{name} mean", fraction.mean(), row["generated_fraction_mean"], max(fraction.std(), 1e-9), count)
    for what, probability in (
        ("p_all_generated", (fraction == 1).mean()),
        ("p_none_generated", (fraction == 0).mean()),
    ):
        yield within(f"{name} {what}", probability, row[what], binomial(probability), count)
    for number, recorded in enumerate(row["generated_runs_histogram_0_to_10"]):
        share = (stretches(generated) == number).mean()
        yield within(f"{name} {number} stretches", share, recorded, binomial(max(share, recorded)), count)
    for place, recorded in enumerate(row["per_position_generated_probability_every_8th"]):
        share = generated[:, 8 * place].mean()
        yield within(f"{name} frame {8 * place}", share, recorded, binomial(share), count)
    padding = given[:, row["valid"] :]
    yield graded(f"{name} padding", float(padding.mean()) if padding.size else 0.0, 0.0)


_KINDS = {"random_segments": segments, "full": full, "causal": causal, "random_spans": spans}


def drawn_mask(row: Mapping[str, Any], number: int) -> np.ndarray:
    """One mask drawn by our code, of the recorded kind or mixture."""
    generator = StepRng(1).generator(row["type"], number)
    if row["type"].startswith("mixture_"):
        shares = [float(share) for share in row["type"].split("_")[1:]]
        return inpainting_mask(generator, row["length"], row["valid"], shares)
    given = np.zeros(row["length"], dtype=bool)
    given[: row["valid"]] = _KINDS[row["type"]](generator, row["valid"])
    return given


def stretches(generated: np.ndarray) -> np.ndarray:
    """Number of separate generated segments per row."""
    padded = np.pad(generated, ((0, 0), (1, 0)))
    return (padded[:, 1:] & ~padded[:, :-1]).sum(axis=1)


def binomial(probability: float) -> float:
    """Standard deviation of one draw; never quite 0, as a rare event may be missed by one sample."""
    return max(math.sqrt(probability * (1 - probability)), 1e-2)


def within(name: str, ours: float, recorded: float, spread: float, count: int) -> Comparison:
    """Two samples of `count` draws each: their means differ by a few standard errors at most."""
    return graded(name, abs(float(ours) - recorded), _STANDARD_ERRORS * spread * math.sqrt(2 / count))
