"""What differs between a result that is wanted and earlier ones, in words. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cache.receipt import Receipt

EVICTED = "its result was removed"
"""The reason where nothing differs from an earlier result that is recorded."""


def miss_reason(now: Mapping[str, Any], earlier: Sequence[Receipt]) -> str:
    """One line for the plan, such as `rank 16 -> 32`: the differences from the most similar earlier result."""
    if not earlier:
        return "never run"
    records = [record_of(receipt) for receipt in earlier]
    nearest = min(records, key=lambda record: (*_distance(record["inputs"], now["inputs"]), len(changes(record, now))))
    return ", ".join(changes(nearest, now)) or EVICTED


def _distance(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[bool, bool]:
    """Sort key by which results from the same inputs come first, and then results from the same stages.

    They explain a miss better than a result from other data that happens to share more params.
    """
    return before != now, before.keys() != now.keys()


def record_of(receipt: Receipt) -> dict[str, Any]:
    """Everything that decided an earlier result, in the form of `StageRun.record`."""
    return {
        "version": receipt.version,
        "params": receipt.params,
        "inputs": receipt.inputs,
        "components": receipt.components,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two records, in words."""
    old, new = dict(flattened(before)), dict(flattened(now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and _is_relevant(name, old, new)]
    return [_change(name, old.get(name), new.get(name)) for name in names]


def _is_relevant(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """False for what follows from another difference.

    Inputs and weights that only one side reads follow from a param; params that only one side has, from the version.
    """
    follows = name.startswith(("inputs.", "components.")) or old.get("version") != new.get("version")
    return not follows or (name in old and name in new)


def _change(name: str, before: Any, now: Any) -> str:
    group, _, leaf = name.partition(".")
    if group == "inputs":
        return f"{leaf} changed"
    if group == "components":
        return f"{leaf} weights {str(before)[:8]} -> {str(now)[:8]}"
    if leaf == "native_samples":
        return "the model has another native length"
    return f"{leaf or group} {_shown(before)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def flattened(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of a nested record."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
