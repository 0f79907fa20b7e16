"""The adapter that a training starts from (lora_checkpoint_url), checked against the request."""

from __future__ import annotations

import json
from collections.abc import Collection

from stages.adapters import adapter_file
from stages.adapters.kind import kind_named
from stages.errors import AdapterMismatch
from stages.records import AdapterSpec
from stages.train.job import Job
from stages.train.stage import TrainParams


def read_starting_adapter(job: Job) -> adapter_file.AdapterFile | None:
    """The adapter to start from, if one was given; its kind, rank and layers must be the requested ones.

    Raises:
        AdapterMismatch: naming every difference.
    """
    if job.params.lora_checkpoint is None:
        return None
    file = job.inputs.files["lora_checkpoint"]
    found = adapter_file.read(file, unstated=resolved_spec(job.params, None))
    _say_what_was_assumed(job, found)
    wrong = differences(found.spec, job.params, _stated(found))
    base, ours = found.metadata.get("base_digest", ""), job.weights.digests["transformer"]
    if base and base != ours:
        line = f"it was trained on other base weights ({base[:8]}) than these ({ours[:8]})"
        if kind_named(found.spec.kind).basis.singular:
            wrong.append(f"{line}, from which its fixed directions come")
        else:
            job.work.say(f"{file.name}: {line}")
    if wrong:
        raise AdapterMismatch(file.name, wrong)
    return found


def _say_what_was_assumed(job: Job, found: adapter_file.AdapterFile) -> None:
    name, spec = job.inputs.files["lora_checkpoint"].name, found.spec
    if adapter_file.CONFIG not in found.metadata:
        job.work.say(
            f"{name} has no lora_config: it is taken for {spec.kind} of rank {spec.rank} with alpha {spec.alpha:g}; "
            "if it is another, say so by --adapter-type, --rank and --alpha"
        )
    if found.left_out:
        job.work.say(f"{name}: baked norms of {len(found.left_out)} tensors are left out; training changes them")


def _stated(found: adapter_file.AdapterFile) -> Collection[str]:
    """The settings that the file states; of the others, its tensors tell."""
    return set(json.loads(found.metadata.get(adapter_file.CONFIG, "{}")))


def differences(found: AdapterSpec, params: TrainParams, stated: Collection[str]) -> list[str]:
    """A line for each setting in which an adapter file differs from the request.

    Args:
        stated: names of the settings that the file states; layers that it does not state are told by its tensors.
    """
    pairs = {
        "adapter_type": (found.kind, params.adapter_type),
        "rank": (found.rank, params.rank),
        "include": (found.include, params.include),
        "exclude": (found.exclude, params.exclude),
        "alpha": (found.alpha, params.alpha if params.alpha is not None else found.alpha),
    }
    return [
        f"{name} is {its} in the file, {ours} in this request"
        for name, (its, ours) in pairs.items()
        if its != ours and (name in stated or name not in ("include", "exclude"))
    ]


def resolved_spec(params: TrainParams, start: adapter_file.AdapterFile | None) -> AdapterSpec:
    """The spec of the adapter to train: alpha unset means the starting file's, else the rank."""
    alpha = params.alpha if params.alpha is not None else start.spec.alpha if start else float(params.rank)
    return AdapterSpec(
        kind=params.adapter_type,
        rank=params.rank,
        alpha=float(alpha),
        dropout=params.adapter_dropout,
        include=params.include,
        exclude=params.exclude,
    )
