"""Reads a request: recipe TOML and flags in, a validated `Recipe` with params of every stage out.

Light: arrays and pydantic are imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import RecipeError
from pipeline.request.conflicts import conflicts, unused_latent_fields
from pipeline.request.fields import DATA, params_of
from pipeline.request.paths import (
    PATH_FIELDS,
    is_url,
    local_path,
    missing_path_errors,
    path_in_data,
    unknown_home_errors,
    unset_variable_errors,
    with_home,
)
from pipeline.request.validation import validated_fields
from pipeline.settings.recipe_file import recipe_values
from pipeline.settings.user_config import user_defaults
from stages import catalogue
from stages.contract import Resources
from stages.encode.stage import EncodeParams
from stages.ingest.stage import IngestParams
from stages.precision import PRECISIONS
from stages.records import ModelSpec
from stages.train.stage import TrainParams


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A validated request, with a value for every field."""

    source: str
    """`audio_data_url` as given."""
    values: Mapping[str, Any]
    """Values by field name, for all of `pipeline.request.fields.FIELDS`."""
    chosen: frozenset[str] = frozenset()
    """Names of the fields that flags, the recipe file or the command gave."""
    own_weights: str | None = None
    """The checkpoint folder of SA3_WEIGHTS or the user's config."""

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
        """Name of the output files: as given, else the name of the data."""
        return self.values["name"] or source_name(self.source) or "adapter"

    @property
    def weights(self) -> Path | None:
        """The checkpoint folder given by flag, recipe, environment or config."""
        # The user's own is a downloaded checkpoint; models without a repository ship with the project.
        given = self.values["weights"] or (self.own_weights if self.model.repo else None)
        return Path(with_home(given)) if given else None

    @property
    def folders(self) -> dict[str, Path | None]:
        """Local files and folders of the request, by the option that names each."""
        local = not is_url(self.source) and not self.source.startswith("data:")
        data = local_path(self.source) if local else None
        return {"--store": self.store, "--output": self.output, "--weights": self.weights, "DATA": data}

    @property
    def resources(self) -> Resources:
        return params_of(Resources, self.values)

    def ingest_params(self) -> IngestParams:
        """Params of the ingest stage."""
        return params_of(
            IngestParams,
            self.values,
            sample_rate_hz=self.model.sample_rate_hz,
            downsampling_ratio=self.model.downsampling_ratio,
            native_samples=self.model.native_samples,
        )

    def encode_params(self) -> EncodeParams:
        """Params of the encode stage."""
        return params_of(EncodeParams, self.values)

    def train_params(self, lora_checkpoint: str | None) -> TrainParams:
        """Params of the train stage; `lora_checkpoint` is the digest of the adapter file to continue from."""
        return params_of(TrainParams, self.values, lora_checkpoint=lora_checkpoint)


def read_recipe(
    data: str | None,
    flags: Mapping[str, Any],
    recipe_file: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    *,
    trains: bool = False,
    check_files: bool = False,
) -> Recipe:
    """Merge the recipe file and the flags (flags win), and validate every field in one pass.

    Args:
        data: the positional argument; the recipe's `audio_data_url` when None.
        flags: values by field name as typed; None means not given.
        defaults: the command's own defaults, which win over the declared ones.
        trains: the command ends with a training, so fields that cannot affect it are refused.
        check_files: report local files that do not exist together with the other errors.

    Raises:
        RecipeError: names every wrong field, its rule and the value.
    """
    given = dict(defaults or {}) | (recipe_values(recipe_file, PATH_FIELDS) if recipe_file else {})
    given |= {name: value for name, value in flags.items() if value is not None and value != []}
    chosen = frozenset(given)
    if data is not None:
        given[DATA.name] = data
    own = user_defaults()
    own_weights = own.pop("weights", None)
    given = own | given
    given |= {name: with_home(given[name]) for name in PATH_FIELDS if isinstance(given.get(name), str)}
    values = _validated(given, trains=trains, check_files=check_files)
    source = values.pop(DATA.name)
    if values["captions"]:
        values["captions"] = path_in_data(values["captions"], source)
    values["base_precision"] = PRECISIONS[values["base_precision"]]
    return Recipe(source=source, values=values, chosen=chosen, own_weights=own_weights)


def _validated(given: Mapping[str, Any], *, trains: bool, check_files: bool) -> dict[str, Any]:
    """Values of all fields, `DATA` included. Raises: RecipeError."""
    errors, values = validated_fields(given)
    errors += [*conflicts(values), *unknown_home_errors(values), *unset_variable_errors(values)]
    if trains:
        errors += unused_latent_fields(values)
    missing = missing_path_errors(values) if check_files else []
    # A missing file that is the only error is reported where the file is opened.
    if errors or len(missing) > 1:
        raise RecipeError([*errors, *missing])
    return values


def source_name(source: str) -> str:
    """Name of the data, for the output files: without the folder, the `.zip` and the query of a URL."""
    url = urlsplit(source) if source.startswith(("http://", "https://", "file://")) else None
    if source.startswith("data:"):
        return ""
    path = Path(unquote(url.path) if url else source)
    # A dot in a folder's name does not begin a suffix.
    return path.stem if path.suffix.lower() == ".zip" else path.name or path.resolve().name
