"""Progress in a log, and summaries of results."""

from __future__ import annotations

import io

from pipeline.report import Report, summary
from stages.plural import is_or_are, pluralized


def progress_output(stage: str, stream: io.StringIO) -> io.StringIO:
    report = Report(stream=stream)
    for step in (1, 8, 16, 24):
        report.progress_of(stage)(step, 24, "loss")
    report.end_progress()
    return stream


def test_a_log_gets_every_line_of_a_training_however_fast_its_steps_are():
    lines = progress_output("train", io.StringIO()).getvalue().splitlines()
    assert lines == [f"train   {step}/24  loss" for step in (1, 8, 16, 24)]


def test_a_log_gets_the_first_and_the_last_line_of_a_short_stage():
    lines = progress_output("ingest", io.StringIO()).getvalue().splitlines()
    assert lines == ["ingest  1/24  loss", "ingest  24/24  loss"]


def test_summaries_of_one_clip_use_the_singular():
    made = {"num_clips": 1, "duration_seconds": 0.05, "window_frames": 1, "total_seconds": 0.05}
    assert summary("ingest", made) == "1 clip, 0.1 s of audio; crop length 0.05 s (1 frame)"
    left_out = summary("ingest", {**made, "skipped": [{"member": "b.wav"}]})
    assert left_out.startswith("1 clip, 1 file left out, ")
    encoded = {"num_encoded": 1, "num_reused": 0, "num_prompts": 1, "num_prompts_encoded": 1}
    assert summary("encode", encoded) == "1 clip encoded, 0 reused; 1 prompt embedded, 0 reused"
    assert summary("train", {"steps_done": 1, "loss_before": 2.0, "loss_after": 1.0}).startswith(
        "1 step; loss on the same clips"
    )


def test_counts_agree_with_their_nouns():
    assert [pluralized(number, "clip") for number in (0, 1, 2, 1400)] == ["0 clips", "1 clip", "2 clips", "1,400 clips"]
    assert [pluralized(number, "stretch", "stretches") for number in (1, 2)] == ["1 stretch", "2 stretches"]
    assert [is_or_are(number) for number in (0, 1, 2)] == ["are", "is", "are"]
