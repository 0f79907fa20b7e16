"""Fuzzing: any archive, caption or audio file leads to our own errors at most, writes nothing, and bounds memory."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.errors import DatasetFaults, SourceUnreadable
from stages.ingest.caption_template import CaptionSources, filled_template, read_sidecar, template_fault
from stages.ingest.captions.pairing import caption_text, pair, storable_text
from stages.ingest.captions.trigger_phrase import with_trigger_phrase
from stages.ingest.faults import FileRejected
from stages.ingest.source.archive import close_archives, read_member
from stages.ingest.source.limits import ArchiveLimits
from stages.ingest.source.listing import open_source
from tests.small_datasets import clips, run, sound, tone, workspace

SMALL = ArchiveLimits(max_member_bytes=1 << 18, max_total_bytes=1 << 20, max_members=64)
MOST_BYTES = 12 << 20
"""Peak of one look at an archive under these limits: a zip's buffers and one member, far from its declared sizes."""
FEW, MANY = 150, 20_000

NAMES = st.one_of(
    st.sampled_from(
        ["a.wav", "a.txt", "A.WAV", "b.flac", "b.txt", "../x.wav", "/x.wav", "C:\\x.wav", "con.wav", "c.zip"]
    ),
    st.text(max_size=12).filter(lambda text: "\0" not in text and text != ""),
)
METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
ENTRIES = st.lists(st.tuples(NAMES, st.binary(max_size=200), METHODS), max_size=6)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.floats(0, 1), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.integers(0, 64)),
        st.tuples(st.just("twice"), st.floats(0, 1), st.integers(0, 64)),
        st.tuples(st.just("field"), st.floats(0, 1), st.sampled_from([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])),
    ),
    max_size=6,
)


def archive(entries: list[tuple[str, bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as made:
        warnings.simplefilter("ignore")
        for name, content, method in entries:
            try:
                made.writestr(name, content, method)
            except UnicodeEncodeError:
                continue
    return buffer.getvalue()


def edited(data: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    """Damage to a few bytes anywhere; a field is four bytes, like sizes and offsets."""
    for kind, where, value in edits:
        place = int(where * max(0, len(data) - 4))
        if kind == "byte":
            data = data[:place] + bytes([value]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place] + data[place + value :]
        elif kind == "twice":
            data = data[: place + value] + data[place:]
        else:
            data = data[:place] + struct.pack("<I", value) + data[place + 4 :]
    return data


@contextmanager
def nothing_written(place: Path) -> Iterator[None]:
    before = {*place.iterdir(), *place.parent.iterdir()}
    yield
    assert {*place.iterdir(), *place.parent.iterdir()} == before


@contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def look(data: bytes, place: Path) -> None:
    """List an archive, read every readable member, and pair them."""
    path = place / "d.zip"
    path.write_bytes(data)
    try:
        with nothing_written(place), bounded_memory():
            try:
                source = open_source(path, limits=SMALL)
            except SourceUnreadable:
                return
            for member in source.members:
                member.name.encode("utf-8")
                assert not any(ord(letter) < 32 for letter in member.name)
                assert (member.digest is None) != (member.fault is None)
                if member.digest:
                    assert member.num_bytes <= SMALL.max_member_bytes
                    try:
                        assert len(read_member(path, source.kind, member)) == member.num_bytes
                    except FileRejected as rejection:
                        repeated = [one.name for one in source.members].count(member.name) > 1
                        assert repeated or rejection.type == "lfs_pointer"
            pair(source.members, templated=True)
            pair(source.members)
    finally:
        close_archives()


def look_at_anything(count: int) -> Callable[[Path], None]:
    @given(entries=ENTRIES, edits=EDITS)
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def looked(entries: list[tuple[str, bytes, int]], edits: list[tuple[str, float, int]]) -> None:
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "inside").mkdir()
            look(edited(archive(entries), edits), Path(place) / "inside")

    return looked


def read_anything(count: int) -> Callable[[], None]:
    @given(data=st.binary(max_size=300) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def read(data: bytes) -> None:
        try:
            text = with_trigger_phrase(caption_text(data), "zxq")
        except FileRejected as rejection:
            assert rejection.fault("a.txt").type in {"caption_not_utf8", "caption_not_text", "empty_caption"}
        else:
            assert text.encode("utf-8") and "zxq" in text.casefold()
        try:
            assert isinstance(read_sidecar(data), dict)
        except FileRejected as rejection:
            assert rejection.fault("a.json").type == "sidecar_invalid"

    return read


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
TEMPLATES = st.one_of(
    st.text(st.sampled_from("{}ab.[]!:0 "), max_size=12),
    st.sampled_from(["{a}", "{a.b}, {b}", "{caption} {c}", "{{}}{a}"]),
)


def fill_anything(count: int) -> Callable[[], None]:
    @given(template=TEMPLATES, sidecar=st.dictionaries(st.sampled_from(["a", "b", "a.b", "c"]), JSON, max_size=4))
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def fill(template: str, sidecar: dict[str, object]) -> None:
        if template_fault(template):
            return
        read = json.loads(json.dumps(sidecar))
        names = ("a.txt", "a.json", "tags of a.wav")
        known = CaptionSources(caption=lambda: "words", sidecar=read, tags=dict, names=names)
        try:
            text, source = filled_template(template, known)
            assert storable_text(text).encode("utf-8") and source
        except FileRejected as rejection:
            assert rejection.fault("a").type in {
                "caption_key_missing",
                "empty_caption",
                "caption_not_utf8",
                "caption_not_text",
            }

    return fill


def examples_run(test: Callable[..., None], *given: object) -> int:
    """Run a property test and count its examples."""
    inner, ran = test.hypothesis.inner_test, []

    def counted(*args: object, **options: object) -> None:
        ran.append(1)
        inner(*args, **options)

    test.hypothesis.inner_test = counted
    test(*given)
    return len(ran)


FUZZERS = [look_at_anything, read_anything, fill_anything]


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda fuzzer: fuzzer.__name__)
def test_any_archive_or_caption_leads_to_our_own_errors_at_most(fuzzer):
    assert examples_run(fuzzer(FEW)) >= FEW


@pytest.mark.slow
@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda fuzzer: fuzzer.__name__)
def test_twenty_thousand_examples_lead_to_our_own_errors_at_most(fuzzer):
    assert examples_run(fuzzer(MANY)) >= MANY


SOUND = sound(tone(0.2))


def ingest_anything(count: int) -> Callable[[], None]:
    @given(edits=EDITS)
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def ingested(edits: list[tuple[str, float, int]]) -> None:
        with tempfile.TemporaryDirectory() as named:
            place = Path(named)
            data = place / "d.zip"
            data.write_bytes(edited(archive([(name, content, 0) for name, content in FILES.items()]), edits))
            work = workspace(place / "work")
            try:
                run(data, work, skip_bad=True, caption_template="{caption} {mood}")
            except (SourceUnreadable, DatasetFaults):
                assert not list(work.directory.iterdir())
            assert {path.name for path in place.iterdir()} == {"d.zip", "work"}
            assert not list(place.rglob("*.tmp"))

    return ingested


FILES = {**clips("a"), "a.json": b'{"mood": "calm"}', "b.wav": SOUND, "b.txt": b"b", "b.json": b'{"mood": 3}'}


def test_a_damaged_dataset_is_ingested_refused_or_left_out_but_never_breaks_ingest():
    assert examples_run(ingest_anything(40)) >= 40


@pytest.mark.slow
def test_thousands_of_damaged_datasets_never_break_ingest():
    assert examples_run(ingest_anything(3000)) >= 3000


def sounds(count: int) -> Callable[[], None]:
    from tests.damages import FORMS, verdict, whole

    @given(form=st.sampled_from(sorted(FORMS)), edits=EDITS.filter(bool))
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def judged(form: str, edits: list[tuple[str, float, int]]) -> None:
        assert verdict(form, edited(whole(form), edits))[0] in {"caught", "noted", "same", "other"}

    return judged


def test_any_damage_to_an_audio_file_is_handled():
    assert examples_run(sounds(60)) >= 60


@pytest.mark.slow
def test_thousands_of_damaged_audio_files_are_handled():
    assert examples_run(sounds(3000)) >= 3000
