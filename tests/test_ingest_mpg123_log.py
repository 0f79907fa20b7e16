"""What the MP3 decoder complains about is said of the clip, not printed; what others print comes through."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.contract import Resources
from stages.ingest import prepare_clip
from stages.ingest.audio import mpg123_log
from stages.ingest.audio.mpg123_log import Complaints
from tests.damages import flipped, frame_start, whole
from tests.small_datasets import clips, counted, folder, run, sound, workspace

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's stderr may be assigned")
ROOT = Path(__file__).parents[1]
LINE = b"[src/libmpg123/layer3.c:INT123_do_layer3():1804] error: dequantization failed!\n"
MSG = "its decoder reported damage 2 times (big_values too large): listen to it, or export it anew."
RAIN = {"member": "rain.mp3", "type": "decoder_complaints", "msg": MSG}


def damaged(number: int = 1) -> bytes:
    """An MP3 with the side information of so many frames flipped; its decoder says two things of each."""
    data = whole("MP3")
    return flipped(data, [frame_start(data, 20 + 5 * frame) + 8 for frame in range(number)], 0xFF)


def rain(place: Path, **more: bytes) -> Path:
    """A dataset of one damaged MP3 and whatever else."""
    return folder(place / "d", {"rain.mp3": damaged(), "rain.txt": b"rain"} | more)


def warned(place: Path, data: Path, resources: Resources | None = None) -> list[dict[str, str]]:
    """What ingest warns of about decoders; each call is a run of its own over one store."""
    outcome, _ = run(data, workspace(place, resources))
    return [one for one in outcome.facts["warnings"] if one["type"] == "decoder_complaints"]


def printed(code: str, place: Path, *, closed: bool = False) -> tuple[str, str]:
    """(stdout, stderr) of a fresh process that runs the code; `closed`: it has no file descriptor 2 at all."""
    head = (
        "import ctypes, os, sys, threading\nfrom pathlib import Path\nfrom stages.contract import Resources\n"
        "from tests.test_ingest_mpg123_log import *\nlibc = ctypes.CDLL(None)\nplace = Path(sys.argv[1])\n"
        "stderr = ctypes.c_void_p.in_dll(libc, 'stderr')\n"
    )
    # pyarrow's threads now and then abort a process as short as this when its destructors run.
    tail = "\nimport atexit\natexit._run_exitfuncs()\nsys.stdout.flush()\nos._exit(0)"
    code = ("import os; os.close(2)\n" if closed else "") + head + code + tail
    command = [sys.executable, "-c", code, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    return done.stdout, done.stderr


def said(text: bytes) -> None:
    """Print through C's stderr, as libraries do."""
    libc = ctypes.CDLL(None)
    libc.fputs(text, ctypes.c_void_p.in_dll(libc, "stderr"))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of what is decoded, as it is."""
    names: list[str] = []
    monkeypatch.setattr(prepare_clip, "recording_of", counted(prepare_clip.recording_of, names))
    return names


def test_an_mp3_whose_decoder_complains_is_warned_of_by_name(tmp_path):
    assert warned(tmp_path, rain(tmp_path)) == [RAIN]


def test_one_complaint_is_said_in_the_singular(tmp_path, monkeypatch):
    heard = Complaints()
    with heard.heard():
        said(LINE)
    monkeypatch.setattr("stages.ingest.audio.decode.Complaints", lambda: heard)
    msg = "its decoder reported damage once (dequantization failed): listen to it, or export it anew."
    assert [one["msg"] for one in warned(tmp_path, folder(tmp_path / "d", clips("a")))] == [msg]


def test_the_warning_is_said_again_when_the_prepared_clip_is_used_again(tmp_path, decoded):
    assert warned(tmp_path, rain(tmp_path)) == warned(tmp_path, rain(tmp_path, **clips("b"))) == [RAIN]
    assert sorted(decoded) == ["b.wav", "rain.mp3"]


def test_a_clip_that_is_warned_of_is_accepted(tmp_path):
    _, rows = run(rain(tmp_path), workspace(tmp_path))
    assert [row.clip_id for row in rows] == ["rain"]


def tagged(data: bytes) -> bytes:
    """With a tag that the decoder takes for sound, and one in front that it does not understand."""
    return b"ID3\3\0\0\0\0\0\x10TIT2\0\0\0\6\0\0\x09hello" + data + b"APETAGEX" + bytes(6000)


@pytest.mark.parametrize("made", [whole, lambda form: tagged(whole(form))], ids=["plain", "with foreign tags"])
def test_of_a_sound_mp3_no_such_thing_is_said(tmp_path, made):
    assert warned(tmp_path, folder(tmp_path / "d", {"a.mp3": made("MP3"), "a.txt": b"a"})) == []


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_of_a_sound_mp3_of_a_low_rate_nothing_is_said_either(tmp_path, rate, monkeypatch):
    heard = counted_lines(monkeypatch)
    noise_NC = np.random.default_rng(0).normal(0, 0.2, (12 * rate, 1)).astype(np.float32)
    files = {"a.mp3": sound(noise_NC, rate, "MP3", "MPEG_LAYER_III"), "a.txt": b"a"}
    assert warned(tmp_path, folder(tmp_path / "d", files)) == []
    assert heard == []


def counted_lines(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every line of the decoder's, as it is heard."""
    lines: list[bytes] = []
    count = Complaints._count
    monkeypatch.setattr(Complaints, "_count", lambda self, line: lines.append(line.group()) or count(self, line))
    return lines


@pytest.mark.parametrize("resources", ["workers=1", "workers=2, engine='threading'", "workers=2"])
def test_nothing_of_the_decoders_is_printed_however_many_work(tmp_path, resources):
    rain(tmp_path, **{"b.mp3": damaged(3), "b.txt": b"b"})
    code = f"print(len(warned(place, place / 'd', Resources({resources}))))"
    assert printed(code, tmp_path) == ("2\n", "")


def test_nothing_of_the_decoders_is_printed_while_tags_are_read(tmp_path):
    pytest.importorskip("mutagen")
    folder(tmp_path / "d", {"a.mp3": tagged(damaged()), "a.txt": b"rain"})
    code = "from stages.ingest.captions.tags import read_tags; read_tags((place / 'd' / 'a.mp3').read_bytes())"
    assert printed(code, tmp_path) == ("", "")


def test_a_warning_needs_no_file_descriptor_2(tmp_path):
    rain(tmp_path)
    assert printed("print(len(warned(place, place / 'd')))", tmp_path, closed=True)[0] == "1\n"


def test_what_others_write_to_stderr_meanwhile_comes_through(tmp_path):
    rain(tmp_path)
    code = (
        "over = threading.Event()\n"
        "def talk(write):\n"
        "    number = 0\n"
        "    while not over.wait(0.0002) or number < 100:\n"
        "        write(number := number + 1)\n"
        "    sys.stdout.write(f'{number}\\n')\n"
        "ways = [lambda number: os.write(2, b'direct %d\\n' % number), lambda number: said(b'by C %d\\n' % number)]\n"
        "talkers = [threading.Thread(target=talk, args=(way,)) for way in ways]\n"
        "[one.start() for one in talkers]\n"
        "for number in range(5):\n"
        "    assert len(warned(place / str(number), place / 'd')) == 1\n"
        "over.set()\n"
        "[one.join() for one in talkers]\n"
    )
    out, err = printed(code, tmp_path)
    lines = err.splitlines()
    numbers = [sorted(int(line.removeprefix(kind)) for line in lines if kind in line) for kind in ("direct ", "by C ")]
    assert numbers == [list(range(1, len(ones) + 1)) for ones in numbers]
    assert sorted(map(len, numbers)) == sorted(map(int, out.split()))
    assert len(lines) == sum(map(len, numbers))


def test_an_unfinished_line_of_somebody_elses_is_passed_on(capfd):
    heard = Complaints()
    with heard.heard():
        said(b"loading ... " + LINE)
    assert (heard.number, capfd.readouterr().err) == (1, "loading ... ")


def test_after_an_error_c_prints_where_it_did_before(capfd):
    with pytest.raises(KeyboardInterrupt), Complaints().heard():
        raise KeyboardInterrupt
    said(b"here\n")
    assert capfd.readouterr().err == "here\n"


def test_threads_hear_their_own_decoder_only(tmp_path):
    files = {f"{number}.mp3": damaged(number) for number in range(8)}
    data = folder(tmp_path / "d", files | {f"{number}.txt": b"x" for number in range(8)})
    found = warned(tmp_path / "threads", data, Resources(workers=4, engine="threading"))
    assert found == warned(tmp_path / "alone", data)
    assert [one["member"] for one in found] == [f"{number}.mp3" for number in range(1, 8)]


def test_a_process_forked_while_another_thread_decodes_hears_and_prints_as_ever(tmp_path):
    code = (
        "def decode():\n"
        "    while not over.is_set():\n"
        "        with Complaints().heard():\n"
        "            said(LINE); over.wait(0.002)\n"
        "over = threading.Event()\n"
        "other = threading.Thread(target=decode); other.start()\n"
        "for number in range(20):\n"
        "    if not (child := os.fork()):\n"
        "        said(b'child\\n'); heard = Complaints()\n"
        "        with heard.heard(): said(LINE)\n"
        "        os._exit(heard.number)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1\n"
        "over.set(); other.join()\n"
    )
    assert printed("import warnings; warnings.simplefilter('ignore')\n" + code, tmp_path) == ("", "child\n" * 20)


def test_where_nothing_can_be_heard_clips_are_decoded_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(mpg123_log, "_ear", lambda: None)
    assert warned(tmp_path, rain(tmp_path)) == []
