"""A pre-encoded folder with faults: every one is found and named, and nothing is taken on trust."""

from __future__ import annotations

import numpy as np
import pytest

from stages.contract import Inputs, Resources, Weights, Workspace
from stages.encode.pre_encoded.folder import NOT_DERIVABLE, READ
from stages.encode.pre_encoded.importing import import_folder
from stages.encode.stage import ImportParams
from stages.errors import DatasetFaults
from stages.ingest.source.listing import open_source
from stages.models.checkpoint_folder import open_folder
from tests.pre_encoded import USUAL, ImportSetup, array, copied, rows
from tests.small_networks import TINY


@pytest.fixture(scope="module")
def weights() -> Weights:
    return open_folder("tiny-s", TINY)


@pytest.fixture
def place(tmp_path, weights) -> ImportSetup:
    return copied(tmp_path, weights, "nopad")


DAMAGE = {
    "metadata_missing": lambda place: (place.folder / "0000000000.json").unlink(),
    "metadata_unreadable": lambda place: (place.folder / "0000000000.json").write_text("{"),
    "field_missing": lambda place: place.change("0000000000", prompt=None),
    "field_invalid": lambda place: place.change("0000000000", seconds_total=0),
    "latents_unreadable": lambda place: (place.folder / "0000000000.npy").write_bytes(b"not an array"),
    "latents_misshapen": lambda place: array(place, lambda latents: latents[:-1]),
    "mask_misshapen": lambda place: array(place, lambda latents: latents[:, :-1]),
    "latents_not_finite": lambda place: array(place, lambda latents: latents * np.inf),
    "latents_too_large": lambda place: array(place, lambda latents: latents * 1e6),
}


@pytest.mark.parametrize("type", DAMAGE)
def test_a_clip_with_a_fault_is_refused_by_name(place, type):
    DAMAGE[type](place)
    assert place.faults(latent_dtype="float16") == [("0000000000.npy", type)]
    assert not list((place.root / "encode").iterdir())


@pytest.mark.parametrize("field", NOT_DERIVABLE)
def test_a_field_that_nothing_else_tells_must_be_there(place, field):
    place.change("0000000000", **{field: None})
    assert place.faults() == [("0000000000.npy", "field_missing")]


@pytest.mark.parametrize("field", sorted({*READ} - {*NOT_DERIVABLE}))
def test_a_field_that_the_folder_tells_otherwise_is_derived_and_that_is_said(place, field):
    whole = rows(place.read())
    place.change("0000000000", **{field: None})
    derived = rows(place.read())
    assert [line for line in place.said if line.startswith(f"no {field}, ") and line.endswith(": 1 clip")]
    assert [one.item_key for one in derived] == [one.item_key for one in whole]
    assert [one.seconds_total for one in derived] == [one.seconds_total for one in whole]


@pytest.mark.parametrize(("seconds", "rounded"), [(1.5, 2), (0.2, 1), (2.0, 2)])
def test_fractions_of_seconds_are_rounded_as_the_tool_rounds_them(place, seconds, rounded):
    place.change("0000000000", seconds_total=seconds, seconds_start=0.9)
    first = rows(place.read())[0]
    assert (first.seconds_start, first.seconds_total) == (0, rounded)
    assert "fractions in seconds_start, rounded as the tool rounds: 1 clip" in place.said


def test_a_folder_without_silence_gets_that_of_the_model_and_says_what_is_not_checked(place):
    whole = rows(place.read())
    (place.folder / "silence.npy").unlink()
    artifact = place.read()
    assert rows(artifact) == whole
    assert artifact.facts["silence"]["num_frames"] > 0
    assert artifact.facts["origin"]["silence_difference"] is None
    assert [line for line in place.said if "has no usable silence.npy" in line and "cannot be checked" in line]


@pytest.mark.parametrize(
    "fields",
    [
        {"seconds_total": -1.5},
        {"seconds_total": "1"},
        {"seconds_total": float("nan")},
        {"seconds_start": -1},
        {"seconds_start": True},
        {"sample_rate": 48_000},
        {"prompt": "  "},
        {"relpath": ""},
        {"padding_mask": [0, 0, 0, 0]},
        {"padding_mask": [1, 0, 1, 1]},
        {"padding_mask": [2, 2, 2, 2]},
        {"padding_mask": "1111"},
    ],
    ids=str,
)
def test_metadata_that_makes_no_sense_is_refused(place, fields):
    place.change("0000000000", **fields)
    assert place.faults() == [("0000000000.npy", "field_invalid")]


def test_metadata_without_latents_is_a_lost_clip(place):
    (place.folder / "0000020000.npy").unlink()
    assert place.faults() == [("0000020000.json", "latents_missing")]


def test_every_fault_of_every_file_is_listed_at_once(place):
    DAMAGE["latents_misshapen"](place)
    place.change("0000010000", prompt=None)
    (place.folder / "0000020000.json").unlink()
    array(place, lambda silence: silence[0], "silence.npy")
    assert place.faults() == [
        ("0000000000.npy", "latents_misshapen"),
        ("0000010000.npy", "field_missing"),
        ("0000020000.npy", "metadata_missing"),
        ("silence.npy", "latents_misshapen"),
    ]


def test_bad_clips_are_left_out_when_asked_and_recorded(place):
    DAMAGE["latents_misshapen"](place)
    artifact = place.read(skip_bad=True)
    assert [row.clip_id for row in rows(artifact)] == ["clip1.wav", "clip2.wav", "clip3.wav"]
    assert [(one["member"], one["type"]) for one in artifact.facts["origin"]["skipped"]] == [
        ("0000000000.npy", "latents_misshapen")
    ]
    assert [line for line in place.said if line.startswith("left out: 0000000000.npy: it is (15, 4)")]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda place: array(place, lambda s: s[0], "silence.npy"), ("silence.npy", "latents_misshapen")),
        (lambda place: array(place, lambda s: s[:, :-1], "silence.npy"), ("silence.npy", "latents_misshapen")),
    ],
    ids=["flat", "few channels"],
)
def test_a_folder_with_damaged_silence_cannot_be_mended_by_leaving_out_clips(place, damage, fault):
    damage(place)
    assert place.faults(skip_bad=True) == [fault]


def test_latents_of_another_autoencoder_are_refused_by_their_silence(place):
    array(place, lambda silence: silence[:, ::-1], "silence.npy")
    assert place.faults(skip_bad=True) == [("", "autoencoder_differs")]


def test_latents_of_another_model_s_width_are_refused(place):
    for path in place.folder.glob("*.npy"):
        np.save(path, np.concatenate([np.load(path)] * 2, axis=-2))
    assert {type for _, type in place.faults()} == {"latents_misshapen"}


def test_an_empty_folder_and_too_many_clips_are_refused(place):
    assert place.faults(max_clips=3) == [("", "too_many_clips")]
    for path in place.folder.glob("00*"):
        path.unlink()
    assert place.faults() == [("", "too_few_clips")]


def test_a_folder_of_which_nothing_is_left_is_refused(place):
    for stem in [path.stem for path in place.folder.glob("*.json")]:
        place.change(stem, prompt=None)
    assert ("", "too_few_clips") in place.faults(skip_bad=True)


def test_a_file_that_changed_since_the_folder_was_named_is_refused(place):
    source = open_source(place.folder)
    array(place, lambda latents: latents + 1)
    work = Workspace(directory=place.root, shared=place.root / "shared", resources=Resources(device="cpu"))
    params = ImportParams(**USUAL)
    with pytest.raises(DatasetFaults) as caught:
        import_folder(Inputs(source=source, weights=place.weights), params, work)
    assert [(fault.member, fault.type) for fault in caught.value.faults] == [("0000000000.npy", "file_changed")]


@pytest.mark.parametrize("prompt", ["a\0b", "a\ufffd", "a\ud800", "\u200b"])
def test_a_prompt_that_is_no_text_is_a_fault(place, prompt):
    place.change("0000000000", prompt=prompt)
    assert ("0000000000.npy", "field_invalid") in place.faults()


def test_pointers_and_endless_metadata_are_faults(place):
    (place.folder / "0000000000.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    other = sorted(place.folder.glob("*.json"))[1]
    other.write_text("[" * 100_000)
    assert {("0000000000.npy", "lfs_pointer"), (f"{other.stem}.npy", "metadata_unreadable")} <= set(place.faults())
