"""A request, validated all at once: recipe TOML and flags in, params of every stage out."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import FieldError, RecipeError
from pipeline.request.conflicts import conflicts, without_latents
from pipeline.request.field import Field
from pipeline.request.fields import FIELDS
from pipeline.request.paths import absent
from stages import catalogue
from stages.contract import Resources
from stages.encode.stage import EncodeParams
from stages.ingest.stage import IngestParams
from stages.precision import DTYPE_NAMES, PRECISIONS
from stages.records import ModelSpec
from stages.train.stage import TrainParams

if TYPE_CHECKING:
    from pydantic import BaseModel

TRAIN_FIELDS = [
    "model",
    "number_of_steps",
    "learning_rate",
    "rank",
    "alpha",
    "adapter_type",
    "adapter_dropout",
    "include",
    "exclude",
    "batch_size",
    "seed",
    "base_precision",
    "pre_encode",
    "weight_decay",
    "decay_magnitudes",
    "optimizer",
    "schedule",
    "warmup_steps",
    "gradient_accumulation",
    "gradient_clip",
    "ema_decay",
    "frames_per_batch",
    "crops_per_clip",
    "crop_seconds",
    "deterministic",
    "base_quantization",
    "export_precision",
]
"""Request fields that are params of train under the same name."""

INGEST_FIELDS = [
    "resampler",
    "long_clips",
    "trigger_phrase",
    "caption_template",
    "max_clips",
    "max_members",
    "max_member_bytes",
    "max_total_bytes",
    "max_compression_ratio",
    "skip_bad",
]
"""Request fields that are params of ingest under the same name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What was asked for, every field resolved."""

    source: str
    """`audio_data_url` as given."""
    values: Mapping[str, Any]
    """Every field of `pipeline.request.fields`, by name."""

    @property
    def model(self) -> ModelSpec:
        return catalogue.models()[self.values["model"]]

    @property
    def store(self) -> Path:
        return Path(self.values["store"])

    @property
    def output(self) -> Path:
        return Path(self.values["output"])

    @property
    def name(self) -> str:
        """Name of the output files: as asked, else the data's own."""
        return self.values["name"] or source_name(self.source) or "adapter"

    @property
    def weights(self) -> Path | None:
        """The checkpoint folder given by flag, recipe or environment."""
        # The variable stands for a downloaded checkpoint; what ships with the project needs none.
        given = self.values["weights"] or (os.environ.get("SA3_WEIGHTS") if self.model.repo else None)
        return Path(given) if given else None

    @property
    def resources(self) -> Resources:
        return Resources(**{field.name: self.values[field.name] for field in FIELDS if field.where == "resource"})

    def ingest_params(self) -> IngestParams:
        """What decides the manifest and the prepared audio."""
        return IngestParams(
            sample_rate_hz=self.model.sample_rate_hz,
            downsampling_ratio=self.model.downsampling_ratio,
            native_samples=self.model.native_samples,
            duration_seconds=self.values["duration"],
            **{name: self.values[name] for name in INGEST_FIELDS},
        )

    def encode_params(self) -> EncodeParams:
        """What decides the latents."""
        return EncodeParams(
            model=self.model.name,
            latent_format=self.values["latent_format"],
            latent_dtype=self.values["latent_dtype"],
            compute_dtype=DTYPE_NAMES[self.values["encode_precision"]],
        )

    def train_params(self, lora_checkpoint: str | None) -> TrainParams:
        """What decides the adapter; `lora_checkpoint` is the digest of the file to continue from."""
        return TrainParams(**{name: self.values[name] for name in TRAIN_FIELDS}, lora_checkpoint=lora_checkpoint)


def read_recipe(
    data: str | None,
    flags: Mapping[str, Any],
    recipe_file: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    *,
    trains: bool = False,
    looks: bool = False,
) -> Recipe:
    """Merge the recipe file and the flags (flags win), and validate every field in one pass.

    Args:
        data: the positional argument; the recipe's `audio_data_url` when None.
        flags: values by field name as typed; None means not given.
        defaults: what this command takes where neither says anything, in place of the table's default.
        trains: this command ends with a training; fields that cannot change it are refused.
        looks: where anything is wrong, name the files of this disk that are not there as well.

    Raises:
        RecipeError: names every wrong field, its rule and the value.
    """
    given = dict(defaults or {}) | (_recipe_values(recipe_file) if recipe_file else {})
    given |= {name: value for name, value in flags.items() if value is not None and value != []}
    if data is not None:
        given["audio_data_url"] = data
    values = _validated(given, trains=trains, looks=looks)
    source = values.pop("audio_data_url")
    values["base_precision"] = PRECISIONS[values["base_precision"]]
    return Recipe(source=source, values=values)


def _recipe_values(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            [
                FieldError(
                    loc=("recipe",), type="file_missing", msg=f"cannot be read ({error.strerror})", input=str(file)
                )
            ]
        ) from error
    except ValueError as error:
        raise RecipeError(
            [FieldError(loc=("recipe",), type="toml_invalid", msg=f"is not valid TOML: {error}", input=str(file))]
        ) from error


def _validated(given: Mapping[str, Any], *, trains: bool, looks: bool) -> dict[str, Any]:
    wrong, values = _one_by_one(given)
    wrong += conflicts(values)
    if trains:
        wrong += without_latents(values, {field.name: field.default for field in FIELDS})
    missing = absent(values) if looks else []
    # One missing file alone is found where it is opened.
    if wrong or len(missing) > 1:
        raise RecipeError([*wrong, *missing])
    return values


def _one_by_one(given: Mapping[str, Any]) -> tuple[list[FieldError], dict[str, Any]]:
    """What is wrong with each field by itself, and the values of all others."""
    from pydantic import ValidationError

    model = _request_model()
    try:
        return [], model.model_validate(dict(given)).model_dump()
    except ValidationError as error:
        errors = [_field_error(entry) for entry in error.errors()]
    wrong = {entry.loc[0] for entry in errors}
    sound = {"audio_data_url": "not given"} | {name: value for name, value in given.items() if name not in wrong}
    values = model.model_validate(sound).model_dump()
    return errors, {name: value for name, value in values.items() if name not in wrong}


def _field_error(entry: Mapping[str, Any]) -> FieldError:
    """pydantic's entry, with near names for a field that does not exist."""
    loc, message = tuple(entry["loc"]), str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), [field.name for field in FIELDS], n=1)
        message = "is not a field" + (f"; did you mean {near[0]}?" if near else "")
    value = None if entry["type"] == "missing" else entry.get("input")
    return FieldError(loc=loc, type=str(entry["type"]), msg=message[:1].lower() + message[1:], input=value)


def _request_model() -> type[BaseModel]:
    """The table of fields as a pydantic model, whose error types are the hosted trainer's."""
    from typing import Annotated

    from pydantic import ConfigDict, create_model
    from pydantic import Field as Rule

    entries: dict[str, Any] = {field.name: (_annotation(field), field.default) for field in FIELDS}
    entries["audio_data_url"] = (Annotated[str, Rule(min_length=1)], ...)
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model("Request", __config__=config, **entries)


def _annotation(field: Field) -> Any:
    from typing import Annotated, Literal

    from pydantic import AfterValidator, BeforeValidator
    from pydantic import Field as Rule

    plain: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "names": tuple[str, ...]}
    kind = Literal[tuple(field.choices())] if field.choices else plain[field.kind]
    annotation: Any = Annotated[kind, Rule(**dict[str, Any](field.limits))] if field.limits else kind
    if field.kind in ("int", "float"):
        annotation = Annotated[annotation, BeforeValidator(_not_a_switch)]
    if field.check:
        annotation = Annotated[annotation, AfterValidator(_checked(field.check))]
    if field.nullable:
        annotation = annotation | None
        before = split_names if field.kind == "names" else _unset
        return Annotated[annotation, BeforeValidator(before)]
    return annotation


def _not_a_switch(value: Any) -> Any:
    """pydantic would take `true` for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _checked(check: Callable[[str], str | None]) -> Callable[[str], str]:
    """A field's own rule as pydantic asks for it."""

    def checked(text: str) -> str:
        if wrong := check(text):
            raise ValueError(wrong)
        return text

    return checked


def source_name(source: str) -> str:
    """What output files are named after: the data's own name, without what else an address may hold."""
    address = urlsplit(source) if source.startswith(("http://", "https://", "file://")) else None
    if source.startswith("data:"):
        return ""
    path = Path(unquote(address.path) if address else source)
    # A folder's name is its name, dots and all.
    return path.stem if path.suffix.lower() == ".zip" else path.name or path.resolve().name


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


def _unset(value: Any) -> Any:
    """Makefiles and shells pass an unset variable as an empty string."""
    return None if isinstance(value, str) and not value.strip() else value
