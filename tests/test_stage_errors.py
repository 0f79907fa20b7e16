"""The remedies that errors of the stages suggest, and the codes that programs match on."""

from __future__ import annotations

import pytest

import cache.errors
from pipeline.cli_errors import error_json
from stages import errors
from stages.errors import LossNotFinite


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
