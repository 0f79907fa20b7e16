"""What the MP3 decoder reports about damage becomes a warning that names the clip; none of it is printed."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.contract import Resources
from stages.errors import StageError
from stages.ingest import prepare_clip
from stages.ingest.audio import mpeg_decoder
from stages.ingest.audio.decode import Recording
from stages.ingest.audio.mpeg_decoder import MpegFile, damage_reports, end_idle_decoders, may_be_mpeg
from stages.ingest.captions.tags import read_tags
from stages.ingest.faults import FileRejected
from tests.damages import FORMS, flipped, frame_start, whole
from tests.small_datasets import clips, counted, folder, run, sound, tone, workspace

ROOT = Path(__file__).parents[1]
MSG = "its decoder reported damage 2 times (big_values too large). Listen to it, or export it again."
RAIN = {"member": "rain.mp3", "type": "decoder_complaints", "msg": MSG}


def damaged(number: int = 1) -> bytes:
    """An MP3 with the side information of so many frames flipped; its decoder prints two lines about each."""
    data = whole("MP3")
    return flipped(data, [frame_start(data, 20 + 5 * frame) + 8 for frame in range(number)], 0xFF)


def in_wav(data: bytes) -> bytes:
    """The MP3 as the content of a WAV."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 2, 44100, 16000, 1152, 0, 12, 1, 2, 417, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def rain(place: Path, **more: bytes) -> Path:
    """A dataset of one damaged MP3 and whatever else."""
    return folder(place / "d", {"rain.mp3": damaged(), "rain.txt": b"rain"} | more)


def warned(place: Path, data: Path, resources: Resources | None = None) -> list[dict[str, str]]:
    """Warnings of ingest about decoders; each call is a run of its own over one store."""
    outcome, _ = run(data, workspace(place, resources))
    return [one for one in outcome.facts["warnings"] if one["type"] == "decoder_complaints"]


def printed(code: str, place: Path, *, closed: bool = False) -> tuple[str, str]:
    """(stdout, stderr) of a fresh process that runs the code; `closed`: it has no file descriptor 2 at all."""
    head = (
        "import os, sys\nfrom pathlib import Path\nfrom stages.contract import Resources\n"
        "from tests.test_ingest_mpeg_decoder import *\nplace = Path(sys.argv[1])\n"
    )
    # pyarrow's threads now and then abort a process as short as this when its destructors run.
    tail = "\nimport atexit\natexit._run_exitfuncs()\nsys.stdout.flush()\nos._exit(0)"
    code = ("import os; os.close(2)\n" if closed else "") + head + code + tail
    command = [sys.executable, "-c", code, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    return done.stdout, done.stderr


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """Contents of what is decoded, as it is."""
    contents: list[bytes] = []
    monkeypatch.setattr(prepare_clip, "open_recording", counted(prepare_clip.open_recording, contents))
    return contents


def test_an_mp3_whose_decoder_reports_damage_is_warned_of_by_name(tmp_path):
    assert warned(tmp_path, rain(tmp_path)) == [RAIN]


def test_one_report_is_worded_in_the_singular(tmp_path, monkeypatch):
    monkeypatch.setattr(Recording, "complaints", {"dequantization failed": 1})
    msg = "its decoder reported damage once (dequantization failed). Listen to it, or export it again."
    assert [one["msg"] for one in warned(tmp_path, folder(tmp_path / "d", clips("a")))] == [msg]


def test_the_warning_is_repeated_when_the_prepared_clip_is_used_again(tmp_path, decoded):
    assert warned(tmp_path, rain(tmp_path)) == warned(tmp_path, rain(tmp_path, **clips("b"))) == [RAIN]
    assert len(decoded) == len(set(decoded)) == 2


def test_a_clip_that_is_warned_of_is_accepted(tmp_path):
    _, rows = run(rain(tmp_path), workspace(tmp_path))
    assert [row.clip_id for row in rows] == ["rain"]


def tagged(data: bytes) -> bytes:
    """An MP3 with a tag that the decoder takes for audio, and one in front that it does not understand."""
    return b"ID3\3\0\0\0\0\0\x10TIT2\0\0\0\6\0\0\x09hello" + data + b"APETAGEX" + bytes(6000)


@pytest.mark.parametrize("made", [whole, lambda form: tagged(whole(form))], ids=["plain", "with foreign tags"])
def test_an_undamaged_mp3_is_not_warned_of(tmp_path, made):
    assert warned(tmp_path, folder(tmp_path / "d", {"a.mp3": made("MP3"), "a.txt": b"a"})) == []


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_nothing_is_printed_about_an_undamaged_mp3_of_a_low_rate(tmp_path, rate, monkeypatch):
    logs: list[str] = []
    monkeypatch.setattr(mpeg_decoder, "damage_reports", counted(damage_reports, logs))
    noise_XA = np.random.default_rng(0).normal(0, 0.2, (12 * rate, 1)).astype(np.float32)
    files = {"a.mp3": sound(noise_XA, rate, "MP3", "MPEG_LAYER_III"), "a.txt": b"a"}
    assert warned(tmp_path, folder(tmp_path / "d", files)) == []
    assert logs == [""]


def test_reports_are_lines_about_audio_without_their_place_in_the_decoder():
    log = (
        "[src/libmpg123/layer3.c:INT123_do_layer3():1804] error: dequantization failed!\n"
        "[src/libmpg123/id3.c:parse_new_id3():1000] warning: ID3v2: cannot handle this\n"
        "\nNote: Trying to resync...\n"
        "Note: Illegal Audio-MPEG-Header 0x41504554 at offset 1000.\n"
        "\nWarning: Big change (MPEG version, layer, rate) from previous frame.\n"
        "something that no version prints today"
    )
    expected = ["dequantization failed", "Big change (MPEG version, layer, rate) from previous frame"]
    assert damage_reports(log) == [*expected, "something that no version prints today"]


@pytest.mark.parametrize("resources", ["workers=1", "workers=2, engine='threading'", "workers=2"])
def test_nothing_from_the_decoder_is_printed_whatever_the_workers(tmp_path, resources):
    rain(tmp_path, **{"b.mp3": damaged(3), "b.txt": b"b", "c.wav": in_wav(damaged()), "c.txt": b"c"})
    code = f"print(len(warned(place, place / 'd', Resources({resources}))))"
    assert printed(code, tmp_path) == ("3\n", "")


def test_nothing_from_the_decoder_is_printed_while_tags_are_read(tmp_path):
    pytest.importorskip("mutagen")
    folder(tmp_path / "d", {"a.mp3": tagged(damaged()), "a.txt": b"rain"})
    code = "print(read_tags((place / 'd' / 'a.mp3').read_bytes()))"
    assert printed(code, tmp_path) == ("{}\n", "")


def test_tags_that_only_libsndfile_reads_are_found_in_an_mp3():
    pytest.importorskip("mutagen")
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 44100, 2, "MPEG_LAYER_III", format="MP3") as file:
        file.comment = "a wet street"
        file.write(tone(1.0))
    assert read_tags(buffer.getvalue())["comment"] == "a wet street"


def test_a_warning_needs_no_file_descriptor_2(tmp_path):
    rain(tmp_path)
    assert printed("print(len(warned(place, place / 'd')))", tmp_path, closed=True)[0] == "1\n"


def test_reports_of_files_decoded_in_threads_are_not_mixed_up(tmp_path):
    files = {f"{number}.mp3": damaged(number) for number in range(8)}
    data = folder(tmp_path / "d", files | {f"{number}.txt": b"x" for number in range(8)})
    found = warned(tmp_path / "threads", data, Resources(workers=4, engine="threading"))
    assert found == warned(tmp_path / "alone", data)
    assert [one["member"] for one in found] == [f"{number}.mp3" for number in range(1, 8)]


@pytest.mark.parametrize("made", [damaged, lambda: in_wav(damaged(2)), lambda: whole("MP3")])
def test_samples_are_those_of_the_decoder_in_this_process(made, capfd):
    class Forward(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    expected_XA = Forward(io.BytesIO(made())).read(1 << 20, dtype="float32", always_2d=True)
    found_AX = np.concatenate(list(Recording(made()).blocks()), axis=1)
    assert np.array_equal(found_AX, expected_XA.T)


@pytest.mark.parametrize("form", FORMS)
def test_only_what_libmpg123_decodes_goes_to_another_process(form):
    is_mpeg = form == "MP3" or FORMS[form][0].endswith((".m4a", ".aac", ".wma"))  # libsndfile meets those by mistake
    assert may_be_mpeg(whole(form)) == is_mpeg


def test_an_mp3_in_a_wav_may_be_mpeg():
    assert may_be_mpeg(in_wav(whole("MP3")))


def decoders_of(pid: int) -> list[int]:
    """Processes that decode MP3 for a process."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if b"mpeg_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
        except OSError:
            pass
    return found


def test_no_decoder_is_left_behind_by_ingest(tmp_path):
    end_idle_decoders()
    warned(tmp_path, rain(tmp_path))
    assert decoders_of(os.getpid()) == []


def test_a_recording_that_is_not_read_to_its_end_leaves_no_decoder_behind():
    end_idle_decoders()
    next(Recording(sound(tone(60.0), form="MP3", subtype="MPEG_LAYER_III")).blocks())
    assert decoders_of(os.getpid()) == []


def test_an_error_that_is_kept_keeps_no_decoder():
    end_idle_decoders()
    with pytest.raises(FileRejected) as kept:
        MpegFile(b"ID3" + bytes(200))
    assert len(decoders_of(os.getpid())) == 1
    end_idle_decoders()
    assert decoders_of(os.getpid()) == [] and kept.value.__traceback__ is not None


def test_one_decoder_serves_file_after_file():
    end_idle_decoders()
    for _ in range(3):
        assert len(list(Recording(whole("MP3")).blocks())) == 5
        assert len(decoders_of(os.getpid())) == 1
    end_idle_decoders()


def test_a_decoder_that_is_killed_is_an_error_that_names_the_clip(tmp_path, monkeypatch):
    def killed(data: bytes) -> Recording:
        recording = Recording(data)
        [os.kill(pid, signal.SIGKILL) for pid in decoders_of(os.getpid())]
        return recording

    end_idle_decoders()
    monkeypatch.setattr(prepare_clip, "open_recording", killed)
    data = {"long.mp3": sound(tone(60.0), form="MP3", subtype="MPEG_LAYER_III"), "long.txt": b"x"}
    with pytest.raises(StageError, match=r"long\.mp3: the process that decodes MP3s was killed"):
        warned(tmp_path, folder(tmp_path / "d", data))


def test_a_decoder_does_not_end_by_a_sigterm_that_is_sent_to_every_process():
    end_idle_decoders()
    blocks = Recording(sound(tone(60.0), form="MP3", subtype="MPEG_LAYER_III")).blocks()
    next(blocks)
    [os.kill(pid, signal.SIGTERM) for pid in decoders_of(os.getpid())]
    assert len(list(blocks)) > 70
    end_idle_decoders()


def test_a_decoder_ends_with_the_process_it_works_for():
    code = (
        "import time\nfrom tests.test_ingest_mpeg_decoder import *\n"
        "blocks = Recording(whole('MP3')).blocks(); next(blocks)\n"
        "print(decoders_of(os.getpid())[0], flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    decoder = int(process.stdout.readline())
    process.kill()
    process.communicate()
    until = time.monotonic() + 20
    while is_running(decoder) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(decoder)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
