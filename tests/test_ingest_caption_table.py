"""Captions from metadata.csv or metadata.jsonl, and hints about what lies beside a clip without a caption."""

from __future__ import annotations

import json

import pytest

from stages.contract import Member
from stages.errors import DatasetFaults
from stages.ingest.captions.pairing import pair
from stages.ingest.source.dataset_files import clip_files
from stages.ingest.source.listing import open_source
from tests.small_datasets import clips, faults, folder, run, sound, workspace

AUDIO = {"a.wav": sound(), "drums/ü.wav": sound()}
WANTED = [("a", "warm, deep pad"), ("drums/ü", "a drum loop")]
ROWS = [{"file_name": "a.wav", "caption": "warm, deep pad"}, {"file_name": "drums/ü.wav", "caption": "a drum loop"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", 'file_name,caption\r\na.wav,"warm, deep pad"\r\ndrums/ü.wav,a drum loop\r\n'),
        ("metadata.csv", "Path;Text;bpm\na;warm, deep pad;90\ndrums\\ü.wav;a drum loop;\n"),
        ("captions.tsv", "file\tprompt\na.wav\twarm, deep pad\n./drums/ü.wav\ta drum loop\n"),
        ("metadata.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("drums/metadata.csv", 'file_name,text\n../a.wav,"warm, deep pad"\nü.wav,a drum loop\n'),
        ("drums/metadata.csv", 'file_name,text\na.wav,"warm, deep pad"\ndrums/ü.wav,a drum loop\n'),
        ("m.csv", "sep=;\r\nfile_name;caption\r\na.wav;warm, deep pad\r\ndrums/ü.wav;a drum loop\r\n"),
        ("m.csv", "file_name|caption\ra.wav|warm, deep pad\rdrums/ü.wav|a drum loop\r"),
        (
            "m.csv",
            'file_name, caption\n\n,\na.wav, "warm, deep pad"\ndrums/ü.wav, a drum loop\na.wav,"warm, deep pad"\n',
        ),
        ("captions.txt", "file_name;caption\na.wav;warm, deep pad\ndrums/ü.wav;a drum loop\n"),
        ("dataset.json", json.dumps(ROWS)),
        ("metadata.jsonl", json.dumps(ROWS, indent=1)),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_are_read_from_a_table(tmp_path, name, content, encoding):
    data = folder(tmp_path / "d", {**AUDIO, name: content.encode(encoding)})
    _, rows = run(data, workspace(tmp_path), captions=name)
    assert [(row.clip_id, row.prompt) for row in rows] == WANTED
    assert {row.caption_source for row in rows} == {name}


def test_the_table_that_is_read_is_not_called_unused(tmp_path):
    data = folder(tmp_path / "d", {**AUDIO, "m.csv": "file,caption\na.wav,x\ndrums/ü.wav,y\n".encode()})
    outcome, _ = run(data, workspace(tmp_path), captions="m.csv")
    assert [one for one in outcome.facts["warnings"] if one["member"] == "m.csv"] == []


def test_a_table_takes_the_place_of_txt_files_with_a_note(tmp_path):
    data = folder(tmp_path / "d", {**clips("a"), "m.csv": b"file,caption\na.wav,from the table\n"})
    outcome, (row,) = run(data, workspace(tmp_path), captions="m.csv")
    assert row.prompt == "from the table"
    assert ("a.txt", "caption_in_table") in [(one["member"], one["type"]) for one in outcome.facts["warnings"]]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (b"file,caption\na.wav,x\n", ("b.wav", "caption_row_missing")),
        (b"file,caption\na.wav,x\nb.wav,y\nc.wav,z\n", ("m.csv", "caption_row_invalid")),
        (b"file,caption\na.wav,x\nb.wav,y\na.wav,z\n", ("m.csv", "caption_row_invalid")),
        (b"file,caption\na.wav,x\nb.wav,y\n,z\n", ("m.csv", "caption_row_invalid")),
        (b"file,caption\na.wav,warm, soft pad\nb.wav,y\n", ("m.csv", "caption_row_invalid")),
        (b'file,caption\na.wav,"x\nb.wav,y\n', ("m.csv", "caption_table_invalid")),
        (b"file,caption\n", ("b.wav", "caption_row_missing")),
        (b"", ("m.csv", "caption_table_invalid")),
        (b"name,words\na.wav,x\n", ("m.csv", "caption_table_invalid")),
        (b"file,caption\na.wav,x\nb.wav, \n", ("m.csv", "caption_row_invalid")),
        (b"file,caption\na.wav,x\nb.wav\n", ("m.csv", "caption_row_invalid")),
        (b"file,caption\na.wav,x\nb.wav,y\x00\n", ("m.csv", "caption_row_invalid")),
        (b"\xff\xfe\xff", ("m.csv", "caption_table_invalid")),
        (b"version https://git-lfs.github.com/spec/v1\n", ("m.csv", "lfs_pointer")),
    ],
)
def test_a_table_that_does_not_fit_the_clips_is_a_fault(tmp_path, table, found):
    data = folder(tmp_path / "d", {"a.wav": sound(), "b.wav": sound(), "m.csv": table})
    assert found in faults(data, tmp_path, captions="m.csv")


def test_an_absolute_path_into_the_data_names_its_file(tmp_path):
    rows = [{"audio_filepath": str(tmp_path / "d" / name), "text": name} for name in AUDIO]
    data = folder(tmp_path / "d", {**AUDIO, "m.jsonl": "\n".join(json.dumps(row) for row in rows).encode()})
    assert [row.prompt for row in run(data, workspace(tmp_path), captions="m.jsonl")[1]] == ["a.wav", "drums/ü.wav"]


@pytest.mark.parametrize("letter", ["\u2028", "\u2029"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_only_line_ends_end_a_row(tmp_path, letter, name):
    row = {"file": "a.wav", "caption": f"x{letter}y"}
    table = f"file,caption\na.wav,x{letter}y\n" if name == "m.csv" else json.dumps(row, ensure_ascii=False)
    data = folder(tmp_path / "d", {"a.wav": sound(), name: table.encode()})
    assert [row.prompt for row in run(data, workspace(tmp_path), captions=name)[1]] == [f"x{letter}y"]


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("m.csv", "file,caption\na.wav,x\n\nc.wav,z\n", "line 4 names c.wav, which is no audio file of the dataset."),
        ("m.csv", "file,caption\na.wav,x\n/data/B.wav,z\n", "line 3 names /data/B.wav, which is no audio file of the "
         "dataset (b.wav has its name)"),
        ("m.csv", "file,caption\na.wav,x\nb.wav,\n", "line 3 is about b.wav, whose caption has no text"),
        ("m.csv", "file,caption\na.wav,warm, soft\nb.wav,y\n", "line 2 has more values than the table has columns"),
        ("m.csv", "a.wav,x\nb.wav,y\n", "its first line must name the columns, one of the files (file_name"),
        ("m.jsonl", '{"file": "a.wav", "text": "x"}\n{"file": "b.wav", "te', "line 2 is not JSON: Unterminated string"),
        ("m.jsonl", '{"file": "a.wav", "text": "x", "text": "y"}', "line 1 is not JSON: the key text is there twice"),
        ("m.json", '["a.wav"]', "entry 1 is not a JSON object"),
    ],
)  # fmt: skip
def test_a_fault_in_a_table_says_where_and_what(tmp_path, name, table, said):
    data = folder(tmp_path / "d", {"a.wav": sound(), "b.wav": sound(), name: table.encode()})
    with pytest.raises(DatasetFaults) as caught:
        run(data, workspace(tmp_path), captions=name)
    assert said in str(caught.value)


def test_a_clip_whose_row_has_a_fault_is_left_out_and_never_cut_short(tmp_path):
    table = b"file,caption\na.wav,warm, soft pad\nb.wav,y\n"
    data = folder(tmp_path / "d", {"a.wav": sound(), "b.wav": sound(), "m.csv": table})
    outcome, rows = run(data, workspace(tmp_path), captions="m.csv", skip_bad=True)
    assert [(row.clip_id, row.prompt) for row in rows] == [("b", "y")]
    assert "line 2" in outcome.facts["skipped"][0]["msg"]


def test_a_txt_that_the_table_takes_the_place_of_is_not_judged(tmp_path):
    files = {"a.wav": sound(), "a.txt": b"\xff", "notes.txt": b"", "m.csv": b"file,caption\na.wav,x\n"}
    _, (row,) = run(folder(tmp_path / "d", files), workspace(tmp_path), captions="m.csv")
    assert row.prompt == "x"


def test_a_missing_table_names_those_that_are_there(tmp_path):
    data = folder(tmp_path / "d", {"a.wav": sound(), "x/Metadata.CSV": b""})
    with pytest.raises(DatasetFaults, match=r"holds no m.csv \(it holds x/Metadata.CSV\)"):
        run(data, workspace(tmp_path), captions="m.csv")


def test_a_table_that_is_not_there_is_a_fault(tmp_path):
    assert ("", "caption_table_missing") in faults(folder(tmp_path / "d", clips("a")), tmp_path, captions="m.csv")


def test_a_table_is_part_of_the_name_of_the_data_only_where_it_is_used(tmp_path):
    source = open_source(folder(tmp_path, {**clips("a"), "m.csv": b"x"}))
    assert "m.csv" not in [one.name for one in clip_files(source, templated=False).members]
    assert "m.csv" in [one.name for one in clip_files(source, templated=False, table="m.csv").members]


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        ("x/a.wav.txt", "x/a.wav.txt lies beside it: if it is the caption, rename it to a.txt"),
        ("x/a.caption", "x/a.caption lies beside it: if it is the caption, rename it to a.txt"),
        ("x/a.json", "x/a.json lies beside it"),
        ("x/metadata.csv", "read them with --captions x/metadata.csv"),
        ("metadata.jsonl", "read them with --captions metadata.jsonl"),
        ("captions/a.txt", "captions/a.txt has its name: if it is the caption, move it to x/a.txt"),
    ],
)
def test_a_clip_without_a_caption_names_what_lies_beside_it_and_the_remedy(other, hint):
    found = pair(
        [Member(name="x/a.wav", num_bytes=1, digest="sha256:0")], others=[Member(name=other, num_bytes=1, digest="")]
    )
    (fault,) = found.faults
    assert fault.type == "missing_caption"
    assert hint in fault.msg


def test_notes_are_shown_also_when_there_are_faults(tmp_path):
    said: list[str] = []
    data = folder(tmp_path / "d", {**clips("a"), "b.wav": sound(), "notes.md": b"x"})
    with pytest.raises(DatasetFaults):
        run(data, workspace(tmp_path, say=said.append))
    assert any("notes.md" in line for line in said)
