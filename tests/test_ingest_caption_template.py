"""Captions made by a template over JSON sidecars, tags and the .txt."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import PackageMissing
from stages.ingest.caption_template import CaptionSources, filled_template, template_fault, template_keys
from stages.ingest.faults import FileRejected
from tests.small_datasets import clips, faults, folder, run, sound, tone, workspace


def known(sidecar: object = None, tags: dict[str, str] | None = None, caption: str | None = None) -> CaptionSources:
    assert sidecar is None or isinstance(sidecar, dict)
    return CaptionSources(
        caption=lambda: caption, sidecar=sidecar or {}, tags=lambda: tags or {}, names=("a.txt", "a.json", "tags of a")
    )


@pytest.mark.parametrize(
    ("template", "text", "source"),
    [
        ("{genre}, {bpm} BPM", "house, 120 BPM", "a.json"),
        ("{caption}, {bpm} BPM", "a loop, 120 BPM", "a.txt + a.json"),
        ("{title} in {meta.key}", "Dawn in A minor", "a.json + tags of a"),
        ("{moods}", "calm, warm", "a.json"),
        ("{swing}{{x}}", "0.5{x}", "a.json"),
        ("{live}", "true", "a.json"),
    ],
)
def test_a_template_is_filled_and_the_sources_of_its_values_are_named(template, text, source):
    sidecar = {"genre": "house", "bpm": 120, "meta": {"key": "A minor"}, "moods": ["calm", "warm"], "swing": 0.5}
    found = filled_template(template, known({**sidecar, "live": True}, {"title": "Dawn", "genre": "other"}, "a loop"))
    assert found == (text, source)


@pytest.mark.parametrize("value", [None, "", "  ", [], {}, {"a": 1}, [[]], float("inf")])
def test_a_key_without_text_is_missing_and_the_message_lists_the_available_keys(value):
    with pytest.raises(FileRejected) as caught:
        filled_template("{genre}", known({"genre": value, "bpm": 3}, {"title": "x"}))
    fault = caught.value.fault("a.wav")
    assert fault.type == "caption_key_missing"
    assert "needs genre" in fault.msg and "it has bpm, genre" in fault.msg and ", title)" in fault.msg


@pytest.mark.parametrize("template", ["plain", "{", "}", "{}", "{0}", "{a[0]}", "{a!r}", "{a:5}", "{a.}", "{.a}", ""])
def test_an_invalid_template_is_rejected_with_a_reason(template):
    assert template_fault(template)


@given(st.lists(st.from_regex(r"[a-z_]{1,6}(\.[a-z]{1,4})?", fullmatch=True), min_size=1, max_size=4))
def test_the_keys_of_a_template_are_found_in_order(keys):
    template = " - ".join(f"{{{key}}}" for key in keys)
    assert template_fault(template) is None and list(template_keys(template)) == keys


def dataset(place: Path) -> Path:
    files = clips("a", "b", "c")
    del files["b.txt"]
    sidecars = {"a.json": {"genre": "house", "bpm": 120}, "b.json": {"genre": "techno", "bpm": 133.5}}
    return folder(
        place / "d", {**files, **{name: json.dumps(one).encode() for name, one in sidecars.items()}, "c.json": b"{}"}
    )


def test_captions_come_from_the_template_and_each_row_records_its_source(tmp_path):
    data = dataset(tmp_path)
    (data / "c.json").write_text('{"genre": "dub", "bpm": 70}')
    outcome, rows = run(data, workspace(tmp_path), caption_template="{genre}, {bpm} BPM", trigger_phrase="zxq")
    assert [(row.clip_id, row.prompt, row.caption_source) for row in rows] == [
        ("a", "zxq, house, 120 BPM", "a.json"),
        ("b", "zxq, techno, 133.5 BPM", "b.json"),
        ("c", "zxq, dub, 70 BPM", "c.json"),
    ]
    assert [(one["member"], one["type"]) for one in outcome.facts["warnings"]] == [
        ("a.txt", "caption_unused"), ("c.txt", "caption_unused"),
    ]  # fmt: skip


def test_without_a_template_sidecars_are_other_files_and_captions_are_the_txt(tmp_path):
    data = dataset(tmp_path)
    assert faults(data, tmp_path) == [("b.wav", "missing_caption")]
    outcome, rows = run(data, workspace(tmp_path), skip_bad=True)
    assert [row.prompt for row in rows] == ["tone number 0", "tone number 2"]
    assert [one["type"] for one in outcome.facts["warnings"]] == ["other_file"] * 3


def test_every_missing_key_and_every_bad_sidecar_is_listed_with_its_clip(tmp_path):
    data = dataset(tmp_path)
    folder(data, {**clips("d", "e"), "d.json": b"not json", "e.json": b"[1]", "e.txt": b""})
    assert faults(data, tmp_path, caption_template="{caption} {genre}") == [
        ("b.wav", "caption_key_missing"),
        ("c.wav", "caption_key_missing"),
        ("d.json", "sidecar_invalid"),
        ("e.json", "sidecar_invalid"),
        ("e.txt", "empty_caption"),
    ]


def tagged_wav() -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 44100, 2, "PCM_16", format="WAV") as file:
        file.genre, file.title = "Ambient", "Dawn"
        file.write(tone(0.5))
    return buffer.getvalue()


def test_the_tags_of_the_audio_itself_can_be_used(tmp_path):
    mutagen = pytest.importorskip("mutagen")
    mp3 = io.BytesIO(sound(tone(1.0), form="MP3", subtype="MPEG_LAYER_III"))
    tags = mutagen.File(mp3, easy=True)
    tags.add_tags()
    tags["genre"], tags["bpm"], tags["title"] = "House", "124", "Dusk"
    mp3.seek(0)
    tags.save(mp3)
    data = folder(tmp_path / "d", {"a.wav": tagged_wav(), "b.mp3": mp3.getvalue(), "b.json": b'{"title": "Night"}'})
    _, rows = run(data, workspace(tmp_path), caption_template="{title}, {genre}")
    assert [(row.prompt, row.caption_source) for row in rows] == [
        ("Dawn, Ambient", "tags of a.wav"),
        ("Night, House", "b.json + tags of b.mp3"),
    ]
    assert faults(data, tmp_path, caption_template="{bpm}") == [("a.wav", "caption_key_missing")]


def test_tags_without_the_package_that_reads_them_end_the_run_and_not_the_clip(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mutagen", None)
    data = folder(tmp_path / "d", {"a.wav": tagged_wav()})
    with pytest.raises(PackageMissing, match="pip install mutagen"):
        run(data, workspace(tmp_path), caption_template="{genre}", skip_bad=True)


def without_captions(place: Path, *names: str) -> Path:
    return folder(place / "d", {name: data for name, data in clips(*names).items() if name.endswith(".wav")})


def test_file_names_are_captions_by_request(tmp_path):
    data = without_captions(tmp_path, "drums/dusty_half_time", "warm pad")
    _, rows = run(data, workspace(tmp_path), caption_template="{filename}", trigger_phrase="zxq")
    assert [row.prompt for row in rows] == ["zxq, dusty half time", "zxq, warm pad"]


def test_a_key_filename_of_the_json_wins_over_the_files_own_name(tmp_path):
    data = without_captions(tmp_path, "a", "b")
    (data / "a.json").write_text('{"filename": "said so"}')
    _, rows = run(data, workspace(tmp_path), caption_template="{filename}")
    assert [(row.prompt, row.caption_source) for row in rows] == [("said so", "a.json"), ("b", "its name")]


def test_one_caption_is_that_of_every_clip_braces_included(tmp_path):
    data = without_captions(tmp_path, "a", "b")
    _, rows = run(data, workspace(tmp_path), caption="dusty {x} breakbeats")
    assert [row.prompt for row in rows] == ["dusty {x} breakbeats"] * 2


def test_with_one_caption_for_all_the_txt_files_are_unused_with_a_note_however_they_are(tmp_path):
    data = folder(tmp_path / "d", {**clips("a", "b"), "b.txt": b"", "a.json": b"not json"})
    outcome, rows = run(data, workspace(tmp_path), caption="a loop")
    assert [row.prompt for row in rows] == ["a loop"] * 2
    unused = [one for one in outcome.facts["warnings"] if one["type"] == "caption_unused"]
    assert [(one["member"], one["msg"]) for one in unused] == [
        (name, "--caption does not use it; leave that out to use it.") for name in ("a.txt", "b.txt")
    ]
