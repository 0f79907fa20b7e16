"""A field is declared once: flag, validation, docs/fields.md and the JSON schema follow from the declaration."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pipeline.request.fields import DATA, FIELDS, SECTIONS, collected
from pipeline.request.fields_page import fields_page
from pipeline.request.json_schema import request_schema
from pipeline.request.pre_encoded import ENCODING_FIELDS
from pipeline.request.validation import validated_fields
from stages.encode.stage import ImportParams
from stages.field import Field

ROOT = Path(__file__).parents[1]
SCHEMA = Draft202012Validator(request_schema())


def test_the_page_of_fields_is_the_one_made_from_the_declarations():
    assert (ROOT / "docs" / "fields.md").read_text(encoding="utf-8") == fields_page(), "run `make fields`"


def test_the_page_lists_every_field_once():
    page = fields_page()
    assert [page.count(f"\n| `{field.name}` |") for field in (DATA, *FIELDS)] == [1] * (len(FIELDS) + 1)
    assert {field.section for field in FIELDS} == set(SECTIONS)


def test_names_and_params_are_not_declared_twice():
    assert len({field.name for field in collected()}) == len(FIELDS)
    assert len({field.attribute for field in collected()}) == len(FIELDS)


def test_every_optional_package_is_in_the_extra_that_is_named():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    needs = {field.name: field.needs for field in FIELDS if field.needs}
    assert set(needs) == {"caption_template", "resampler", "optimizer", "base_quantization"}
    for package in needs.values():
        assert [entry for entry in extras[package.extra] if entry.startswith(package.package)]


def test_an_import_uses_or_refuses_every_field_of_ingest_and_encode_but_the_limits_of_a_zip():
    used = {param.name for param in dataclasses.fields(ImportParams)}
    decisive = [field for field in FIELDS if field.stage in ("ingest", "encode") and field.hashed]
    ignored = {field.name for field in decisive if field.attribute not in used} - set(ENCODING_FIELDS)
    assert ignored == {"max_members", "max_member_bytes", "max_total_bytes", "max_compression_ratio"}


NEW_FIELD = """
from __future__ import annotations
import json, sys
from dataclasses import dataclass
from pathlib import Path
import stages.train.stage as stage
from stages.field import param

@dataclass(frozen=True, kw_only=True)
class TrainParams(stage.TrainParams):
    shimmer: float = param(0.5, ge=0, lt=1, help="how much the adapter shimmers")

stage.TrainParams = TrainParams

from typer.testing import CliRunner
from pipeline.cli import app
from pipeline.request.fields_page import fields_page
from pipeline.request.json_schema import request_schema
from pipeline.request.recipe import read_recipe

recipes = [({}, None), ({"shimmer": "0.25"}, None), ({}, Path(sys.argv[1]))]
refused = CliRunner().invoke(app, ["run", "https://example.org/clips.zip", "--shimmer", "1", "--json"])
try:
    TrainParams(model="tiny-base", shimmer=1)
except ValueError as error:
    params_error = str(error)
print(json.dumps({
    "help": CliRunner().invoke(app, ["run", "--help-all"]).stdout,
    "error": json.loads(refused.stdout)["detail"],
    "page": fields_page(),
    "schema": request_schema()["properties"]["shimmer"],
    "params": [read_recipe("clips.zip", flags, file).train_params(None).shimmer for flags, file in recipes],
    "params_error": params_error,
}))
"""
"""Declares one more field of train, and touches nothing else."""


def test_a_new_field_needs_its_declaration_and_nothing_else(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("shimmer = 0.75\n")
    done = subprocess.run([sys.executable, "-c", NEW_FIELD, recipe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert " ".join(found["help"].split()).count("--shimmer FLOAT how much the adapter shimmers [0.5]") == 1
    (error,) = found["error"]
    assert (error["loc"], error["type"], error["input"]) == (["body", "shimmer"], "less_than", "1")
    assert "\n| `shimmer` | 0.5 | >= 0, < 1 | train | yes | how much the adapter shimmers |\n" in found["page"]
    assert found["schema"] == {
        "description": "how much the adapter shimmers",
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "default": 0.5,
    }
    assert found["params"] == [0.5, 0.25, 0.75]
    assert found["params_error"] == "train.shimmer must be a number, at least 0 and below 1; got 1.0"


def request(**fields):
    return {"audio_data_url": "clips.zip", **fields}


def is_valid(document) -> bool:
    return not validated_fields(document)[0]


def test_the_schema_is_a_json_schema_and_its_defaults_are_valid():
    Draft202012Validator.check_schema(request_schema())
    assert SCHEMA.is_valid(request(**{field.name: field.default for field in FIELDS}))


def test_the_schema_printed_by_the_module_is_json():
    words = [sys.executable, "-m", "pipeline.request.json_schema"]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == request_schema()


@pytest.mark.parametrize(
    "document",
    [{}, {"audio_data_url": ""}, {"audio_data_url": None}, request(adaptor_type="lora"), request(rank=None)],
    ids=str,
)
def test_what_the_validator_refuses_of_a_whole_request_the_schema_refuses(document):
    assert (is_valid(document), SCHEMA.is_valid(document)) == (False, False)


def boundary_values(field: Field):
    """Values at, just inside and just outside every bound; every choice and a wrong one."""
    if field.kind == "choice":
        return [*field.values, "no such choice", None, 3]
    if field.kind in ("int", "float"):
        step = 1 if field.kind == "int" else 1e-3
        near = [bound + shift for bound in field.limits.values() for shift in (-step, 0, step)]
        return [*near, 2.5, True, None, [1]]
    return {
        "bool": [True, False, None],
        "str": ["a/b", "cpu", "cuda:1", "f" * 64, "sha256:" + "0" * 64, "{genre}", None, 3, True],
        "names": ["ff", "self_attn, ff", ["ff", "attn"], [], None, [3], 3],
    }[field.kind]


def agree(field: Field, value: object) -> bool:
    """Whether schema and validator both accept a value, or both refuse it; rules in code may refuse more."""
    document = request(**{field.name: value})
    by_validator, by_schema = is_valid(document), SCHEMA.is_valid(document)
    return by_validator == by_schema if field.fault is None else by_schema or not by_validator


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_schema_and_validator_agree_at_the_bounds_of_every_field(field):
    assert [value for value in boundary_values(field) if not agree(field, value)] == []


def typed_values(field: Field):
    """JSON values of any type, but for what flags write as text: numbers, switches, and blanks for unset."""
    texts = st.text(max_size=8).filter(lambda text: text.strip()).map(lambda text: text.replace(",", "x"))
    numbers = st.integers(-(2**31), 2**33) | st.floats(-1e9, 1e9, allow_nan=False)
    kinds = {"int": numbers, "float": numbers, "bool": st.none(), "str": texts, "choice": texts, "names": texts}
    return kinds[field.kind] | st.booleans() | st.none() | st.lists(texts | st.integers(), max_size=2)


@given(data=st.data(), field=st.sampled_from(FIELDS))
@settings(deadline=None)
def test_schema_and_validator_agree_on_any_typed_value(data, field):
    value = data.draw(typed_values(field))
    assert agree(field, value)


def test_the_number_of_threads_is_named_as_the_exception_wherever_bytes_are_promised():
    fields = (ROOT / "docs" / "fields.md").read_text(encoding="utf-8")
    seed, threads = (
        next(line for line in fields.splitlines() if line.startswith(f"| `{name}`")) for name in ("seed", "threads")
    )
    assert "number of threads" in seed and "other last bits" in threads
    for page, words in {
        "README.md": "same adapter bytes with the same `--threads`",
        "ARCHITECTURE.md": "one number of threads",
    }.items():
        assert words in (ROOT / page).read_text(encoding="utf-8")
