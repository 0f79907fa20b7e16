"""Validates the fields of a request one by one, with every error of all of them. Light: pydantic is imported on use."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pipeline.errors import FieldError
from pipeline.request.fields import DATA, FIELDS
from pipeline.settings.other_names import ADVICE, ALIASES, MEANT
from stages.field import Field, rule_in_words, text_fault

if TYPE_CHECKING:
    from pydantic import BaseModel


def validated_fields(given: Mapping[str, Any]) -> tuple[list[FieldError], dict[str, Any]]:
    """The errors of the wrong fields, and the values of all others, defaults included.

    Args:
        given: by field name, as typed or as read from TOML; text is converted to the field's type.
    """
    from pydantic import ValidationError

    model = _request_model()
    try:
        return [], model.model_validate(dict(given)).model_dump()
    except ValidationError as error:
        errors = [_field_error(entry) for entry in error.errors()]
    wrong = {entry.loc[0] for entry in errors}
    sound = {DATA.name: "not given"} | {name: value for name, value in given.items() if name not in wrong}
    values = model.model_validate(sound).model_dump()
    return errors, {name: value for name, value in values.items() if name not in wrong}


def _field_error(entry: Mapping[str, Any]) -> FieldError:
    """pydantic's entry, with a similar name for a field that does not exist."""
    loc, message = tuple(entry["loc"]), str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        message = f"is not a field{_meant(str(loc[-1]))}"
    type, value = str(entry["type"]), None if entry["type"] == "missing" else entry.get("input")
    message = message[:1].lower() + message[1:]
    return FieldError(loc=loc, type=type, msg=message, input=value, words=_in_words(str(loc[0]), type))


_OWN = ("value_error", "extra_forbidden")
"""Types of errors whose messages are ours."""


def _in_words(name: str, type: str) -> str:
    """The rule that a field breaks, in our words; empty where the message is ours already."""
    field = next((field for field in (*FIELDS, DATA) if field.name == name), None)
    if field is None or type in _OWN:
        return ""
    return f"must be given: {field.help}" if type == "missing" else f"must be {rule_in_words(field)}"


def _meant(name: str) -> str:
    """The field that was meant, by what other trainers call it, or by its letters; empty where neither is known."""
    names = [*(field.name for field in FIELDS), *(short for shorts in ALIASES.values() for short in shorts)]
    if name in ADVICE:
        return f". {ADVICE[name]}"
    near = [MEANT[name]] if name in MEANT else difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def _request_model() -> type[BaseModel]:
    """All fields as a pydantic model, whose error types are the hosted trainer's."""
    from pydantic import ConfigDict, create_model

    entries: dict[str, Any] = {field.name: (_annotation(field), field.default) for field in (*FIELDS, DATA)}
    return create_model("Request", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **entries)


_TYPES: Mapping[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "names": tuple[str, ...]}


def _annotation(field: Field) -> Any:
    """The field's type with its rules, as pydantic reads them."""
    from typing import Annotated, Literal

    from pydantic import AfterValidator, BeforeValidator
    from pydantic import Field as Rule

    kind = Literal[tuple(field.values)] if field.kind == "choice" else _TYPES[field.kind]
    annotation: Any = Annotated[kind, Rule(**dict[str, Any](field.limits))] if field.limits else kind
    if field.kind in ("int", "float"):
        annotation = Annotated[annotation, BeforeValidator(_not_a_switch)]
    if field.pattern is not None or field.fault is not None:
        annotation = Annotated[annotation, AfterValidator(_text_check(field))]
    if field.nullable:
        annotation = annotation | None
        before = split_names if field.kind == "names" else _unset_if_blank
        return Annotated[annotation, BeforeValidator(before)]
    return annotation


def _not_a_switch(value: Any) -> Any:
    """Refuse `true`, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _text_check(field: Field) -> Callable[[str], str]:
    """The field's own rules for a text, as a pydantic validator."""

    def checked(text: str) -> str:
        if wrong := text_fault(field, text):
            raise ValueError(wrong)
        return text

    return checked


def split_names(value: Any) -> Any:
    """A list of names from a list or from one comma or space separated string; empty means unset.

    Raises:
        ValueError: commas, and no name between them.
    """
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return value
    names = [name for text in texts for name in text.replace(",", " ").split()]
    if not names and any(text.strip() for text in texts):
        raise ValueError("holds no name: give one or more, such as self_attn,ff, or leave it out")
    return names or None


def _unset_if_blank(value: Any) -> Any:
    """Makefiles and shells pass an unset variable as an empty string."""
    return None if isinstance(value, str) and not value.strip() else value
