"""Params of ingest: what values are refused, and what the key of prepared audio depends on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import pytest

from cache.fingerprint import fingerprint
from stages.ingest.stage import STAGE, IngestParams, audio_params, prepared_key
from tests.small_datasets import PARAMS

NONSENSE = {
    "native_samples": 4095,
    "sample_rate_hz": 0,
    "downsampling_ratio": True,
    "duration_seconds": float("nan"),
    "resampler": "sox",
    "trigger_phrase": "  ",
    "min_clips": 0,
    "max_clips": 2.5,
    "max_member_bytes": -1,
    "max_total_bytes": 0,
    "max_compression_ratio": 0.0,
    "max_members": 0,
    "long_clips": "last",
    "caption_template": "no key",
    "caption": "  ",
    "captions": "  ",
    "skip_bad": "yes",
}


@pytest.mark.parametrize("field", [field.name for field in fields(IngestParams)])
def test_an_invalid_value_is_refused_with_the_name_of_the_field(field):
    with pytest.raises(ValueError, match=rf"ingest\.{field} must be .*; got") as caught:
        replace(PARAMS, **{field: NONSENSE[field]})
    assert repr(NONSENSE[field]) in str(caught.value)


def test_min_clips_may_not_exceed_max_clips():
    with pytest.raises(ValueError, match="max_clips"):
        replace(PARAMS, min_clips=5, max_clips=4)


OTHER = {
    "native_samples": 5 * 44100,
    "sample_rate_hz": 48000,
    "downsampling_ratio": 2048,
    "duration_seconds": 2.0,
    "trigger_phrase": "zzz",
    "min_clips": 2,
    "max_clips": 7,
    "max_member_bytes": 10**6,
    "max_total_bytes": 10**7,
    "max_compression_ratio": 9.0,
    "max_members": 11,
    "long_clips": "split",
    "caption_template": "{genre}",
    "caption": "dusty breakbeats",
    "captions": "metadata.csv",
    "resampler": "soxr",
    "skip_bad": True,
}


@pytest.mark.parametrize("field", sorted(OTHER))
def test_every_param_is_hashed(field):
    before = fingerprint("artifact", {"params": PARAMS})
    assert fingerprint("artifact", {"params": replace(PARAMS, **{field: OTHER[field]})}) != before


@pytest.mark.parametrize("field", sorted(OTHER))
def test_the_key_of_prepared_audio_changes_with_what_changes_its_samples_alone(field):
    changed = replace(PARAMS, **{field: OTHER[field]})
    decides = field in {"native_samples", "sample_rate_hz", "resampler"}
    assert (prepared_key("sha256:00", changed) != prepared_key("sha256:00", PARAMS)) == decides
    assert (audio_params(changed) != audio_params(PARAMS)) == decides


def test_other_source_bytes_have_another_key():
    assert prepared_key("sha256:00", PARAMS) != prepared_key("sha256:01", PARAMS)


def test_the_resampler_is_recorded_with_its_filter_and_its_length_rule():
    recorded = audio_params(PARAMS)["resampler"]
    assert recorded == {"name": "resampy", "filter": "kaiser_best", "length": "ceil(n * to / from)"}


def test_planning_an_ingest_loads_no_arrays():
    code = (
        "import sys, stages.ingest.stage, stages.ingest.source.listing\n"
        "import stages.prepared_audio, pipeline.example_dataset\n"
        "print(sorted({'numpy', 'soundfile', 'resampy', 'numba', 'joblib', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
    assert STAGE.entry == "stages.ingest.run:ingest"
