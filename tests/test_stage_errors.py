"""The remedies that errors of the stages suggest, and the codes that programs match on."""

from __future__ import annotations

import pytest

import cache.errors
from pipeline.cli_errors import error_json
from stages import errors
from stages.errors import LossNotFinite
from stages.ingest.faults import fault


def test_the_error_of_a_diverged_training_names_settings_that_make_its_steps_smaller():
    message = str(LossNotFinite(7, ["a", "b"], "gradient"))
    assert "the gradient is not finite at step 7, on clips a, b." in message
    assert [flag for flag in ("--learning-rate", "--alpha", "--gradient-clip") if flag not in message] == []


@pytest.mark.parametrize(("precision", "said"), [("fp16", True), ("bf16", False), ("fp32", False), (None, False)])
def test_another_precision_is_suggested_only_where_the_base_is_fp16(precision, said):
    assert ("--base-precision" in str(LossNotFinite(7, ["a"], base_precision=precision))) == said


RENAMED = {
    errors.InsufficientDiskSpace: "SpaceShort",
    errors.PreparedAudioMissing: "PreparedMissing",
    errors.WeightsMismatch: "CheckpointMismatch",
    errors.UnsupportedModelConfig: "NetworkNotSupported",
    errors.InvalidAdapterState: "AdapterOrder",
    errors.SingularVectorsDamaged: "BasesDamaged",
    errors.InsufficientMemory: "MemoryShort",
    errors.OutOfMemory: "DeviceFullBeside",
    errors.StepOutOfMemory: "DeviceFull",
    cache.errors.SharedFileListDamaged: "NeedsDamaged",
    cache.errors.LockHeld: "HeldByAnother",
}


def test_classes_that_were_renamed_keep_the_code_that_programs_match_on():
    assert {error: error.code for error in RENAMED} == RENAMED


def test_an_error_document_holds_the_code():
    document = error_json(errors.StepOutOfMemory("cuda:0", batch_size=1, num_frames=8, step=3))
    assert [entry["type"] for entry in document["detail"]] == ["DeviceFull"]
    document = error_json(errors.DeviceNotFound("cuda", "there is none"))
    assert [entry["type"] for entry in document["detail"]] == ["DeviceNotFound"]


def lines_of(*found: errors.Fault, **more: bool) -> list[str]:
    return str(errors.DatasetFaults(found, **more)).splitlines()


def no_caption(member: str) -> errors.Fault:
    return fault(member, "missing_caption", wanted=f"{member.rpartition('.')[0]}.txt", near="")


def test_equal_problems_of_several_files_are_one_entry_with_the_ways_out():
    lines = lines_of(*(no_caption(f"pads/{number:02}.wav") for number in range(41)))
    assert lines[0] == "the dataset has 41 problems, and is not used:"
    assert lines[1] == "  41 files  missing_caption: it has no caption. Write what it sounds like into NAME.txt."
    assert lines[2].startswith("    pads/00.wav, pads/01.wav, ") and lines[2].endswith(" and 33 more")
    assert '--caption "TEXT"' in lines[3] and '--caption-template "{filename}"' in lines[3]
    assert len(lines) == 5


def test_problems_that_differ_stay_one_line_each():
    cut = [fault(f"{name}.wav", "audio_truncated", why=f"{name} bytes") for name in ("1", "2")]
    assert lines_of(*cut, no_caption("3.wav"))[1:4] == [
        "  1.wav  audio_truncated: it is cut short: 1 bytes. Copy or export it again.",
        "  2.wav  audio_truncated: it is cut short: 2 bytes. Copy or export it again.",
        "  3.wav  missing_caption: it has no caption. Write what it sounds like into 3.txt.",
    ]


def test_every_problem_stays_an_entry_of_the_json_document():
    document = error_json(errors.DatasetFaults([no_caption(f"{number}.wav") for number in range(41)]))
    assert len(document["detail"]) == 41
