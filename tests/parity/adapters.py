"""Cases of the adapters: `adapter_*` on the recorded networks, their files, and filters (`file:adapter_filters`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from torch import Tensor

from stages.adapters.adapter_file import AdapterFile, read, write
from stages.adapters.attach import Adapter, attach
from stages.adapters.kind import kind_named
from stages.adapters.layer_filter import expansions, filtered, matching
from stages.adapters.singular_vectors import singular_vectors
from stages.adapters.target_layers import layer_shapes
from stages.catalogue import adapter_kinds
from stages.errors import FilterMatchesNothing
from stages.records import AdapterSpec
from tests.parity.conditioning import conditioner, conditioning
from tests.parity.frame import Case, Comparison, Family, checks, compare, compare_group, exact, failure, graded
from tests.parity.transformer import attending, denoiser, value_zeroing_attention

BASES_CASE = "adapter_lora-xs_r4"
"""The case that records the singular vectors every -xs case is computed with."""


@checks(r"adapter_inputs")
@torch.no_grad()
def without_adapter(family: Family, case: Case) -> Iterator[Comparison]:
    yield compare(case, "out_no_adapter", _outputs(family)[0], where=case.tensors["padding_mask"][:, None])


@checks(r"adapter_(?!inputs).*")
def adapted(family: Family, case: Case) -> Iterator[Comparison]:
    names = case.params.get("adapter_files") or [case.params["adapter_file"]]
    files = [read(family.folder / name) for name in names]
    padding = family.case("adapter_inputs").tensors["padding_mask"]
    with _attached(family, files) as adapters, attending(denoiser(family), value_zeroing_attention):
        for name in (name for name in case.tensors if name.startswith("out_s")):
            strengths = _strengths(name.removeprefix("out_s"), len(adapters))
            with torch.no_grad():
                output, seconds_embed = _outputs(family, dict(zip(adapters, strengths, strict=True)))
            yield compare(case, name, output, where=padding[:, None])
            embedded = name.replace("out_", "seconds_embed_")
            if case.has(embedded):
                yield compare(case, embedded, seconds_embed)
        if case.group("grad:"):
            yield from _gradients(family, case, adapters[0])
    for name, file in zip(names, files, strict=True):
        yield from _same_bytes(family.folder / name, file)


def _strengths(text: str, count: int) -> list[float]:
    """`0_5` is 0.5 for every adapter, `0_3_0_8` is 0.3 for the first and 0.8 for the second."""
    digits = text.split("_")
    values = [float(".".join(pair)) for pair in zip(digits[::2], digits[1::2], strict=True)]
    return values * count if len(values) == 1 else values


def _outputs(family: Family, strengths: Mapping[Adapter, float] | None = None) -> tuple[Tensor, Tensor]:
    """Velocity and duration embedding for the inputs that all adapter cases share."""
    for adapter, strength in (strengths or {}).items():
        adapter.set_strength(strength)
    inputs = family.case("adapter_inputs").tensors
    made = conditioning(family, *family.index["adapter_prompts_and_seconds"])
    with attending(denoiser(family), value_zeroing_attention):
        masks = inputs["inpaint_mask"], inputs["inpaint_masked_input"], inputs["padding_mask"]
        return denoiser(family)(inputs["x"], inputs["t"], made, *masks), made.global_BE


def _gradients(family: Family, case: Case, adapter: Adapter) -> Iterator[Comparison]:
    parameters = adapter.named_parameters()
    output, _ = _outputs(family, {adapter: 1.0})
    loss = (output * family.case("adapter_inputs").tensors["cotangent"]).sum()
    yield compare(case, "loss", loss)
    grads = torch.autograd.grad(loss, list(parameters.values()))
    yield from compare_group(case, "grad:", dict(zip(parameters, grads, strict=True)))


@contextmanager
def _attached(family: Family, files: Sequence[AdapterFile]) -> Iterator[list[Adapter]]:
    """The adapters of the files attached to the family's networks in order; detached afterwards."""
    adapters: list[Adapter] = []
    try:
        for file in files:
            singular = kind_named(file.spec.kind).basis.singular
            bases = recorded_bases(family) if singular else None
            adapters.append(attach((denoiser(family), conditioner(family)), file.spec, singular_vectors=bases))
            adapters[-1].load(file.tensors, "the recorded file")
            adapters[-1].train(False)
        yield adapters
    finally:
        for adapter in reversed(adapters):
            adapter.detach()


def recorded_bases(family: Family) -> dict[str, dict[str, Tensor]]:
    """Recorded singular vectors, in the layout of a bases file."""
    bases: dict[str, dict[str, Tensor]] = {}
    for key, tensor in family.case(BASES_CASE).group("svd:").items():
        layer, _, side = key.partition(".parametrizations.weight.0.")
        bases.setdefault(f"{layer}.weight", {})[side] = tensor
    return bases


@checks(BASES_CASE)
def singular_bases(family: Family, case: Case) -> Iterator[Comparison]:
    """Our singular vectors against the recorded ones: direction and sign of every column."""
    for key, recorded in recorded_bases(family).items():
        weight = _layers(family)[key.removesuffix(".weight")]
        ours = singular_vectors(weight.flatten(1))
        for side, vectors in (("U", ours.U_OK), ("V", ours.V_IK)):
            cosine = (vectors[:, : recorded[side].shape[1]].double() * recorded[side].double()).sum(dim=0)
            yield graded(f"svd:{key}.{side}", (1 - cosine).max().item(), 1e-3, note="1 - cosine, signed")


def _layers(family: Family) -> dict[str, Tensor]:
    """Weights of every Linear and Conv1d, by the name adapters use."""
    return {
        name: module.weight
        for root in (denoiser(family), conditioner(family))
        for name, module in root.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d))
    }


def _same_bytes(path: Path, file: AdapterFile) -> Iterator[Comparison]:
    """Reading and rewriting gives the recorded file to the byte, except for old `dora` files, whose name changes."""
    if '"adapter_type": "dora"' in file.metadata["lora_config"]:
        return
    with TemporaryDirectory() as folder:
        again = Path(folder) / path.name
        write(again, file.tensors, file.spec)
        same = again.read_bytes() == path.read_bytes()
    yield exact(f"file ({path.name} written again)", torch.tensor(same), torch.tensor(True))


# Filters -------------------------------------------------------------------------------------------------------------


@checks(r"file:adapter_filters")
def filters(family: Family, case: Case) -> Iterator[Comparison]:
    for pattern, parts in case.params["pattern_expansion"].items():
        yield _same(f"pattern_expansion {pattern!r}", expansions(pattern), parts)
    universe = sorted({name for names in case.params["pattern_matches"].values() for name in names})
    for pattern, names in case.params["pattern_matches"].items():
        yield _same(f"pattern_matches {pattern!r}", sorted(matching(universe, pattern)), sorted(names))
    known = list(_layers(family))
    for one in case.params["adapted_modules"]:
        recorded = one["model"] + one["conditioner"]
        title = f"adapted_modules +{one['include']} -{one['exclude']}"
        yield _same(title, filtered(known, one["include"], one["exclude"]), recorded)
        yield _same(f"{title} (attached)", _attached_names(family, one["include"], one["exclude"], known), recorded)
    with safe_open(family.folder / "model.safetensors", "pt") as file:
        shapes = layer_shapes({key: file.get_slice(key).get_shape() for key in file.keys()})  # noqa: SIM118
    yield _same("layers by the header", sorted(shapes), sorted(known))
    yield _same("kinds", sorted(adapter_kinds()), sorted({*adapter_kinds(), *_recorded_kinds(family)}))


def _recorded_kinds(family: Family) -> set[str]:
    entries = family.index["cases"]
    return {entry["params"]["adapter_type"] for entry in entries if "adapter_type" in entry.get("params", {})}


def _attached_names(
    family: Family, include: list[str] | None, exclude: list[str] | None, known: list[str]
) -> list[str]:
    """Layers that `attach` adapts. It must refuse patterns without effect, and only those."""
    dead = [pattern for pattern in (*(include or ()), *(exclude or ())) if not matching(known, pattern)]
    refused = bool(dead) or not filtered(known, include, exclude)
    spec = AdapterSpec(kind="lora", rank=1, alpha=1.0, include=_tuple(include), exclude=_tuple(exclude))
    try:
        adapter = attach((denoiser(family), conditioner(family)), spec)
    except FilterMatchesNothing:
        return filtered(known, include, exclude) if refused else ["refused without reason"]
    names = adapter.layer_names()
    adapter.detach()
    return ["filtered in spite of a dead pattern"] if refused else names


def _tuple(patterns: list[str] | None) -> tuple[str, ...] | None:
    return None if patterns is None else tuple(patterns)


def _same(title: str, ours: list[str], recorded: list[str]) -> Comparison:
    if ours == recorded:
        return exact(title, torch.tensor(len(ours)), torch.tensor(len(recorded)))
    return failure(title, f"ours {ours[:4]}, recorded {recorded[:4]}")
