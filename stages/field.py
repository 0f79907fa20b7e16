"""Declaration of a field of the request, on the params dataclass that uses it. Light: standard library only.

    rank: int = param(16, ge=1, le=256, help="adapter rank")

The flag, the TOML key, validation, docs/fields.md and the JSON schema are made from this line by
`pipeline.request.fields`, and `check` applies the same rules to the dataclass. A param without `help` is not a field
of the request: only its rules are used.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Choices = Sequence[str] | Mapping[str, str] | Callable[[], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class OptionalPackage:
    """A package that is not installed with the project."""

    extra: str
    """Its extra in pyproject.toml."""
    package: str
    """Its name for pip."""
    module: str
    """Its name in an import."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field: what may be written in a request, and the params it sets."""

    name: str = ""
    """Name in the request: the TOML key, and the flag with hyphens."""
    attribute: str = ""
    """Name in the params dataclass; the same unless declared otherwise."""
    kind: str = ""
    """`int`, `float`, `bool`, `str`, `choice`, or `names` (a list, or one comma or space separated string)."""
    default: Any = None
    """Value when the request leaves it out; `...` when it must be given."""
    nullable: bool = False
    help: str = ""
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Bounds under pydantic's names: ge, gt, le, lt, min_length."""
    choices: Choices | None = None
    pattern: str | None = None
    """Regular expression for the whole text."""
    rule: str = ""
    """What `pattern` asks for, in words that follow "must be"."""
    fault: Callable[[str], str | None] | None = None
    """Any other rule for a text: what is wrong with it, or None."""
    needs: OptionalPackage | None = None
    """Package that values other than the default need."""
    stage: str = ""
    """Stage that uses the field; empty when no single stage does."""
    hashed: bool | None = None
    """Whether the value decides the result, and so its fingerprint."""
    section: str = ""
    """Heading in docs/fields.md."""
    order: int = 0
    """Place in its section; fields of the same order keep that of the declarations."""

    @property
    def values(self) -> Mapping[str, str]:
        """The choices as written in a request, and the value of the params each stands for."""
        listed = self.choices() if callable(self.choices) else self.choices or ()
        return listed if isinstance(listed, Mapping) else {value: value for value in listed}


def param(default: Any, *, help: str = "", name: str = "", **rules: Any) -> Any:
    """A dataclass field that carries its declaration.

    Args:
        default: value in the params.
        help: one line for --help and the docs; without it the param cannot be set by a request.
        name: the field's name in the request where it is not the attribute's.
        rules: bounds (ge, gt, le, lt) and any other attribute of `Field`. Keys of a mapping of `choices` are what a
            request may say, its values what the params then hold.
    """
    limits: dict[str, Any] = {word: rules.pop(word) for word in ("ge", "gt", "le", "lt") if word in rules}
    declaration = Field(default=default, help=help, name=name, limits=limits, **rules)
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def same_param(params: type, attribute: str) -> Any:
    """A dataclass field with the declaration that another dataclass gives it."""
    (declaration,) = (one.metadata["declaration"] for one in dataclasses.fields(params) if one.name == attribute)
    return dataclasses.field(default=declaration.default, metadata={"declaration": declaration})


def declared_fields(params: Any) -> tuple[Field, ...]:
    """The declarations of a dataclass or of one of its instances, in order, with names and types filled in."""
    return tuple(_completed(field) for field in dataclasses.fields(params) if "declaration" in field.metadata)


_KINDS = {"int": "int", "float": "float", "bool": "bool", "str": "str", "tuple[str, ...]": "names"}


def _completed(field: dataclasses.Field[Any]) -> Field:
    declaration: Field = field.metadata["declaration"]
    annotation = str(field.type)  # text, because modules of params import annotations from __future__
    kind = "choice" if declaration.choices is not None else _KINDS[annotation.removesuffix(" | None")]
    default = declaration.default
    if isinstance(declaration.choices, Mapping):
        default = next(written for written, value in declaration.choices.items() if value == default)
    return replace(
        declaration,
        name=declaration.name or field.name,
        attribute=field.name,
        kind=kind,
        nullable=annotation.endswith(" | None"),
        default=default,
    )


def check(params: Any, stage: str = "") -> None:
    """Apply the declared rules to every declared field of a params dataclass.

    Raises:
        ValueError: naming the first wrong field, its rule and the value.
    """
    for field in broken_rules(params):
        name = f"{stage}.{field.attribute}" if stage else field.attribute
        raise ValueError(f"{name} must be {rule_in_words(field)}; got {getattr(params, field.attribute)!r}")


def broken_rules(params: Any) -> list[Field]:
    """The declared fields of a params dataclass whose values break their rules."""
    return [field for field in declared_fields(params) if not _holds(field, getattr(params, field.attribute))]


def _holds(field: Field, value: Any) -> bool:
    if value is None:
        return field.nullable
    if not _IS_OF_KIND[field.kind](value):
        return False
    if field.kind == "choice":
        return value in field.values.values()
    if field.kind == "str":
        is_blank = field.nullable and not value.strip()
        return not is_blank and text_fault(field, value) is None
    return all(_WITHIN[word](value, bound) for word, bound in field.limits.items())


def text_fault(field: Field, text: str) -> str | None:
    """What is wrong with a text by the field's own rules, or None."""
    if field.pattern is not None and not re.fullmatch(field.pattern, text):
        return f"must be {field.rule}"
    return None if field.fault is None else field.fault(text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_IS_OF_KIND: Mapping[str, Callable[[Any], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": _is_number,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "choice": lambda value: isinstance(value, str),
    "names": lambda value: isinstance(value, tuple) and all(isinstance(name, str) for name in value),
}

_WITHIN: Mapping[str, Callable[[Any, Any], bool]] = {
    "ge": lambda value, bound: value >= bound,
    "gt": lambda value, bound: value > bound,
    "le": lambda value, bound: value <= bound,
    "lt": lambda value, bound: value < bound,
}

_BOUND_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_KIND_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "names": "a list of patterns"}


def rule_in_words(field: Field) -> str:
    """What follows "must be": `a whole number, at least 1 and at most 256`, `one of fp16, fp32, or unset`."""
    bounds = " and ".join(
        f"{_BOUND_WORDS[word]} {bound}" for word, bound in field.limits.items() if word in _BOUND_WORDS
    )
    plain = _KIND_WORDS.get(field.kind, field.rule or "valid text")
    if field.kind == "choice":
        plain = f"one of {', '.join(dict.fromkeys(field.values.values()))}"
    return plain + (f", {bounds}" if bounds else "") + (", or unset" if field.nullable else "")


def extra_in_words(field: Field) -> str:
    """Which values need which extra of pyproject.toml; empty when none does."""
    if field.needs is None:
        return ""
    values = f"all but {field.default} need" if field.kind == "choice" else "may need"
    return f"{values} the extra {field.needs.extra}"
