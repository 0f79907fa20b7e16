"""A request is validated all at once, from flags and from a recipe file alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.request.fields import FIELDS, HOSTED
from pipeline.request.paths import arguments_with_home
from pipeline.request.recipe import read_recipe
from pipeline.request.validation import split_names
from stages.field import Field

HOSTED_DEFAULTS = {
    "model": "medium-base",
    "number_of_steps": 1000,
    "learning_rate": 1e-4,
    "rank": 16,
    "adapter_type": "dora-rows",
    "duration": None,
    "batch_size": 1,
    "seed": 42,
    "base_precision": "bf16",
    "include": None,
    "exclude": None,
    "lora_checkpoint_url": None,
    "pre_encode": False,
}


def recipe_error(**flags):
    with pytest.raises(RecipeError) as caught:
        read_recipe("clips.zip", flags)
    return caught.value


def test_the_hosted_fields_have_the_hosted_names_and_defaults():
    assert {field.name: field.default for field in FIELDS[: len(HOSTED)]} == HOSTED_DEFAULTS
    assert list(HOSTED) == list(HOSTED_DEFAULTS)
    assert {name: read_recipe("clips.zip", {}).values[name] for name in HOSTED_DEFAULTS} == HOSTED_DEFAULTS


def test_every_wrong_field_is_named_in_one_error():
    error = recipe_error(rank="0", number_of_steps="many", learning_rate="0", model="huge", duration="0.5", seed="-1")
    assert {entry.loc[-1] for entry in error.errors} == {
        "rank", "number_of_steps", "learning_rate", "model", "duration", "seed",
    }  # fmt: skip
    assert "rank: must be a whole number, at least 1 and at most 256; got '0'" in str(error)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("rank", 257, "less_than_equal"),
        ("rank", 0, "greater_than_equal"),
        ("number_of_steps", 20_001, "less_than_equal"),
        ("learning_rate", 0, "greater_than"),
        ("learning_rate", 0.011, "less_than_equal"),
        ("learning_rate", "nan", "finite_number"),
        ("duration", 381, "less_than_equal"),
        ("batch_size", 9, "less_than_equal"),
        ("seed", 2**31, "less_than_equal"),
        ("base_precision", "int4", "literal_error"),
        ("adapter_type", "qlora", "literal_error"),
        ("pre_encode", "maybe", "bool_parsing"),
    ],
)
def test_a_value_out_of_range_has_the_hosted_error_type(field, value, kind):
    (entry,) = recipe_error(**{field: value}).errors
    assert (entry.loc, entry.type) == ((field,), kind)


OF_LATENTS = {"encode_precision": "bf16", "latent_dtype": "float32", "latent_format": "hdf5"}


def test_fields_of_stored_latents_are_refused_where_a_training_stores_none():
    with pytest.raises(RecipeError) as caught:
        read_recipe("clips.zip", {**OF_LATENTS, "warmup_steps": 1000}, trains=True)
    found = {error.loc[0]: (error.type, "add --pre-encode" in error.msg) for error in caught.value.errors}
    assert found == {"warmup_steps": ("value_error", False), **dict.fromkeys(OF_LATENTS, ("without_effect", True))}


@pytest.mark.parametrize(
    ("flags", "trains"),
    [(OF_LATENTS, False), ({**OF_LATENTS, "pre_encode": True}, True), ({"latent_dtype": "float16"}, True)],
    ids=["encode alone", "pre-encoded", "the default"],
)
def test_fields_of_stored_latents_are_accepted_where_latents_are_stored(flags, trains):
    values = read_recipe("clips.zip", flags, trains=trains).values
    assert {name: values[name] for name in flags} == flags


@pytest.mark.parametrize(
    ("given", "field", "rule"),
    [
        ({"warmup_steps": 100, "number_of_steps": 100}, "warmup_steps", "below number_of_steps, which is 100"),
        ({"lora_checkpoint_sha256": "a" * 64}, "lora_checkpoint_sha256", "lora_checkpoint_url, which is not given"),
        ({"frames_per_batch": 500, "batch_size": 2}, "frames_per_batch", "takes the place of batch_size, which is 2"),
    ],
)
def test_conflicting_fields_are_refused_by_name(given, field, rule):
    (entry,) = recipe_error(**given).errors
    assert entry.loc == (field,)
    assert rule in entry.msg


def test_an_unknown_field_is_refused_with_a_near_name(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('audio_data_url = "clips.zip"\nadaptor_type = "lora"\n')
    with pytest.raises(RecipeError, match=r"adaptor_type: is not a field; did you mean adapter_type\?"):
        read_recipe(None, {}, file)


def test_a_short_name_that_is_misspelt_is_refused_with_that_short_name(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('dataset = "clips.zip"\nstesp = 4\n')
    with pytest.raises(RecipeError, match=r"stesp: is not a field; did you mean steps\?"):
        read_recipe(None, {}, file)


def test_flags_win_over_the_recipe_and_the_recipe_over_a_commands_default(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('audio_data_url = "clips.zip"\nrank = 4\nseed = 7\npre_encode = false\n')
    recipe = read_recipe(None, {"rank": "8"}, file, defaults={"pre_encode": True})
    assert (recipe.values["rank"], recipe.values["seed"], recipe.values["pre_encode"]) == (8, 7, False)
    assert read_recipe("clips.zip", {}, defaults={"pre_encode": True}).values["pre_encode"] is True


def test_a_request_without_data_says_so():
    with pytest.raises(RecipeError, match="audio_data_url"):
        read_recipe(None, {})


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("self_attn, ff", ("self_attn", "ff")),
        (["self_attn", "layers.[0-3]. ff"], ("self_attn", "layers.[0-3].", "ff")),
        ("", None),
        ([], None),
        (None, None),
    ],
)
def test_include_is_a_list_or_one_comma_or_space_separated_string(given, names):
    found = split_names(given)
    assert (tuple(found) if found else found) == names
    assert read_recipe("clips.zip", {"include": given}).values["include"] == names


@pytest.mark.parametrize("given", [",", " , ,", [","], ["", ","]])
def test_commas_without_a_name_between_them_are_refused(given):
    with pytest.raises(RecipeError, match="include: holds no name: give one or more, such as self_attn,ff, or leave"):
        read_recipe("clips.zip", {"include": given})


def test_both_spellings_of_a_precision_are_one_request():
    assert (
        read_recipe("c.zip", {"base_precision": "bfloat16"}).values
        == read_recipe("c.zip", {"base_precision": "bf16"}).values
    )


def test_an_empty_string_from_a_makefile_variable_means_unset():
    assert read_recipe("clips.zip", {"name": "", "duration": ""}).values["duration"] is None
    assert read_recipe("data/clips.zip", {"name": ""}).name == "clips"


def test_a_recipe_file_that_is_not_toml_is_named(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("rank = = 3")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        read_recipe("clips.zip", {}, file)


def another_value(field: Field) -> object:
    """A valid value that is not the default."""
    if field.kind == "choice":
        return next(value for value in reversed(field.values) if value != field.default)
    if field.kind == "bool":
        return not field.default
    if field.kind in ("int", "float"):
        return 3 if field.kind == "int" else 0.005 if field.limits.get("ge", 0) < 1 else 2.5
    return {"device": "cpu", "caption_template": "{words}"}.get(field.name, "words")


NOT_PARAMS = {"lora_checkpoint_url", "audio_sha256", "lora_checkpoint_sha256", "weights", "store", "output", "name"}
NOT_PARAMS |= {"overwrite"}
"""Fields that no params hold: files, of which params hold the content, and where they are."""


@pytest.mark.parametrize("field", [field for field in FIELDS if field.name not in NOT_PARAMS], ids=lambda one: one.name)
def test_every_field_changes_the_params_of_a_stage_or_a_resource(field):
    def params(recipe):
        return (recipe.ingest_params(), recipe.encode_params(), recipe.train_params(None)), recipe.resources

    before = params(read_recipe("clips.zip", {}))
    after = params(read_recipe("clips.zip", {field.name: another_value(field)}))
    assert (before[0] != after[0], before[1] != after[1]) == (field.hashed, not field.hashed)


@pytest.mark.parametrize("field", ["seed", "rank", "learning_rate"])
def test_a_boolean_is_not_a_number(tmp_path, field):
    file = tmp_path / "recipe.toml"
    file.write_text(f'audio_data_url = "clips.zip"\n{field} = true\n')
    with pytest.raises(RecipeError, match=f"{field}: must be a number"):
        read_recipe(None, {}, file)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/set.a", "set.a"),
        ("data/clips.zip", "clips"),
        ("data/Clips.ZIP", "Clips"),
        ("data:application/zip;base64,AA", "adapter"),
    ],
)
def test_output_files_are_named_after_the_data(source, name):
    assert read_recipe(source, {}).name == name


def test_a_home_folder_is_expanded_in_every_path_of_a_recipe_and_of_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clips").mkdir()
    file = tmp_path / "r.toml"
    file.write_text('audio_data_url = "~/clips"\nmodel = "tiny-base"\nstore = "~/sa3"\nweights = "~"\n')
    read = read_recipe(None, {"output": "~/out"}, file, check_files=True)
    assert (read.source, read.store, read.output) == (str(tmp_path / "clips"), tmp_path / "sa3", tmp_path / "out")
    assert read.weights == tmp_path


@pytest.mark.parametrize("written", ["$HOME/clips", "${HOME}/clips", "$WHERE/clips", "~/$NAME"])
def test_variables_in_the_paths_of_a_recipe_are_expanded_as_a_shell_does(tmp_path, monkeypatch, written):
    for name, value in {"HOME": str(tmp_path), "WHERE": str(tmp_path), "NAME": "clips"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "clips").mkdir()
    read = read_recipe(written, {"store": f"{written}/s"}, check_files=True)
    assert (read.source, read.store) == (str(tmp_path / "clips"), tmp_path / "clips/s")


def test_a_folder_with_a_dollar_in_its_name_is_meant_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$HOME").mkdir()
    assert read_recipe("$HOME", {"store": "s"}, check_files=True).source == "$HOME"


def test_a_variable_that_is_not_set_is_refused_before_a_folder_of_that_name_is_made(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(RecipeError, match=r"store.*\$NOWHERE is not set.*\./\$NOWHERE/s"):
        read_recipe("d.zip", {"store": "$NOWHERE/s"})


def test_a_command_line_is_expanded_where_the_shell_did_not():
    home = str(Path.home())
    asked = ["verify", "--store=~/s", "--recipe", "~/r.toml", "~", "~soft", "--name=a~/b", "x=~/y"]
    expanded = ["verify", f"--store={home}/s", "--recipe", f"{home}/r.toml", home, "~soft", "--name=a~/b", "x=~/y"]
    assert arguments_with_home(asked) == expanded


def test_the_home_folder_of_an_unknown_user_is_refused_before_a_folder_of_that_name_is_made():
    with pytest.raises(RecipeError, match=r"store.*a folder of that very name is \./~nobody-here/s"):
        read_recipe("d.zip", {"model": "tiny-base", "store": "~nobody-here/s"})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path, encoding):
    file = tmp_path / "r.toml"
    file.write_bytes('audio_data_url = "d.zip"\r\nmodel = "tiny-base"\r\ntrigger_phrase = "schön"\r\n'.encode(encoding))
    assert read_recipe(None, {}, file).values["trigger_phrase"] == "schön"


def test_a_recipe_that_is_no_text_is_said_to_be_so(tmp_path):
    file = tmp_path / "r.toml"
    file.write_bytes('model = "tiny-base"'.encode("utf-16-le"))
    with pytest.raises(RecipeError, match=r"is UTF-16 \(little-endian\) without the byte order mark.*save it as UTF-8"):
        read_recipe("d.zip", {}, file)


@pytest.mark.parametrize(
    "given", ["meta/m.csv", "./meta/m.csv", "clips/meta/m.csv", "{here}/clips/meta/m.csv", "~/clips/meta/m.csv"]
)
def test_a_table_in_the_data_is_named_by_its_path_there_or_from_here(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clips" / "meta").mkdir(parents=True)
    (tmp_path / "clips" / "meta" / "m.csv").touch()
    assert read_recipe("clips", {"captions": given.format(here=tmp_path)}).values["captions"] == "meta/m.csv"
    assert read_recipe("clips.zip", {"captions": "./m.csv"}).values["captions"] == "m.csv"


def test_people_read_the_rule_and_programs_the_words_of_the_hosted_trainer():
    with pytest.raises(RecipeError) as caught:
        read_recipe("clips.zip", {"rank": "0", "seed": "1.5", "base_precision": "q"})
    text, entries = str(caught.value), [error.as_json() for error in caught.value.errors]
    assert "seed: must be a whole number, at least 0 and at most 2147483647; got '1.5'" in text
    assert "base_precision: must be one of bf16, fp16, fp32; got 'q'" in text
    assert "nput should" not in text and "unable to" not in text
    assert {entry["type"] for entry in entries} == {"greater_than_equal", "int_parsing", "literal_error"}
    assert all(str(entry["msg"]).startswith("input should") for entry in entries)
