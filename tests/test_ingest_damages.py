"""Every damage of the corpus is detected, proven harmless, or undetectable for a stated reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stages.ingest.source.listing import open_source
from tests.damages import DAMAGES, FORMS, HARMLESS, UNDETECTABLE, UNDETECTABLE_OF, Damage, expected, verdict, whole
from tests.small_datasets import zipped

CELLS = [pytest.param(damage, form, id=f"{damage.kind}-{form}") for damage in DAMAGES for form in damage.forms]
ROOT = Path(__file__).parents[1]
SAME, OTHER = "same", "other"


@pytest.mark.parametrize(("damage", "form"), CELLS)
def test_a_damage_is_caught_or_harmless_or_undetectable_as_the_table_says(damage: Damage, form: str):
    outcome, type = verdict(form, damage.make(form, whole(form)))
    assert type == expected(damage.kind, form)
    if outcome == SAME:
        assert damage.kind in HARMLESS, "the prepared bytes are those of the whole file, and it is said why"
    if outcome == OTHER:
        named = damage.kind in UNDETECTABLE or (damage.kind, form) in UNDETECTABLE_OF
        assert named, "nothing could notice it, and it is said why"


def test_the_corpus_holds_at_least_sixty_damages_over_six_formats():
    made = {(form, damage.make(form, whole(form))) for damage in DAMAGES for form in damage.forms}
    assert len(made) >= 60
    assert len({FORMS[form][1:3] for form, _ in made}) >= 6


def test_without_pyav_the_table_says_what_it_could_not_measure():
    code = (
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'av' else find(name, *more)\n"
        "import tests.damages as damages\n"
        "damages.cells = lambda: []\n"
        "damages.main()"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "AAC (MP4), ALAC (MP4), AAC (raw), WMA: not measured: PyAV is not installed" in said
    assert "8 formats" in said


@pytest.mark.parametrize("form", FORMS)
def test_an_undamaged_file_has_no_fault_and_no_warning(form):
    assert verdict(form, whole(form)) == ("same", "")


@pytest.mark.parametrize("form", ["WAV 16", "WAV float", "AIFF", "MP3"])
def test_inside_a_zip_even_one_flipped_bit_of_pcm_is_caught(tmp_path, form):
    data = whole(form)
    path = zipped(tmp_path / "d.zip", {FORMS[form][0]: data})
    content = bytearray(path.read_bytes())
    content[content.index(data[:64]) + len(data) // 2] ^= 0x01
    path.write_bytes(content)
    assert [member.fault.partition(":")[0] for member in open_source(path).members] == ["member_unreadable"]
