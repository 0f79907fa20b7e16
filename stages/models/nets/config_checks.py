"""Validation of model_config.json: every option is used, known to have no effect, or refused.

Networks are sized by the config alone. An unsupported option that would change the result is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stages.errors import UnsupportedModelConfig

WITHOUT_EFFECT = frozenset(
    {"causal", "checkpointing", "freeze", "freeze_backbone", "mapping_style", "requires_grad", "use_flash"}
)
"""Options in published configs that do not change what a frozen network computes."""


@contextmanager
def damage_in_words(where: str) -> Iterator[None]:
    """Turns whatever a value of the wrong kind leads to while a network is sized into UnsupportedModelConfig."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        if "memory" in str(error):
            raise
        reason = str(error).partition("\n")[0]
        what = f"a value in it is missing or of the wrong kind ({type(error).__name__}: {reason})"
        raise UnsupportedModelConfig(where, what) from error


def refuse_unknown(where: str, config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UnsupportedModelConfig for options that are set and not in `known`."""
    unread = [
        f"{key} = {value!r}"
        for key, value in config.items()
        if key not in known and key not in WITHOUT_EFFECT and _is_set(value)
    ]
    if unread:
        raise UnsupportedModelConfig(where, f"unknown option {', '.join(unread)}")


def require(
    where: str, config: Mapping[str, Any], key: str, allowed: Collection[object], default: object = None
) -> None:
    """Raise UnsupportedModelConfig unless `config[key]` (or the default) is one of the supported values."""
    value = config.get(key, default)
    if value not in allowed:
        shown = " or ".join(repr(one) for one in allowed)
        raise UnsupportedModelConfig(where, f"{key} = {value!r}, only {shown} is supported")


def section(where: str, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A required section of the config. Raises UnsupportedModelConfig if it is missing."""
    part = config.get(key)
    if not isinstance(part, Mapping):
        raise UnsupportedModelConfig(where, f"it has no section {key!r}")
    return part


def single(where: str, config: Mapping[str, Any], key: str, default: object = None) -> Any:
    """The only entry of a list-valued option. Raises UnsupportedModelConfig unless there is exactly one."""
    values = config.get(key, [default])
    if not isinstance(values, list | tuple) or len(values) != 1:
        raise UnsupportedModelConfig(where, f"{key} = {values!r}, exactly one entry is supported")
    return values[0]


def _is_set(value: object) -> bool:
    return bool(value) and value != "none"
