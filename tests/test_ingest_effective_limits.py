"""A limit that a dataset does not exceed is not in its fingerprint; one that it exceeds still ends the run."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.store import Store
from pipeline.execution.runner import run_until
from pipeline.plan.plan import plan
from pipeline.report import Report
from pipeline.request.recipe import read_recipe
from pipeline.request.resolve import resolve_inputs
from stages.contract import Member
from stages.errors import DatasetFaults, SourceUnreadable
from stages.ingest.effective_limits import with_effective_limits
from stages.ingest.run import ingest
from stages.ingest.source import limits as limits_module
from stages.ingest.stage import IngestParams
from tests.small_datasets import PARAMS, clips, counted, sound, tone, zipped

FLAGS = {"model": "tiny-base", "workers": 1, "pre_encode": True}
WIDER = {
    "max_clips": 2001,
    "max_members": 50_001,
    "max_member_bytes": (2 << 30) + 1,
    "max_total_bytes": (64 << 30) + 1,
    "max_compression_ratio": 200.5,
}
NARROWER = {
    "max_clips": 2,
    "max_members": 4,
    "max_member_bytes": 300_000,
    "max_total_bytes": 400_000,
    "max_compression_ratio": 99.0,
}
"""The dataset below is just within these."""
TOO_NARROW = {
    "max_clips": 1,
    "max_members": 3,
    "max_member_bytes": 50_000,
    "max_total_bytes": 100_000,
    "max_compression_ratio": 1.5,
}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Path:
    """A finished ingest of two clips, one of them compressed to about half its size."""
    root = tmp_path_factory.mktemp("first")
    files = clips("low", seconds=0.5) | {"long.txt": b"a long one"}
    zipped(root / "clips.zip", files)
    with zipfile.ZipFile(root / "clips.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("long.wav", sound(tone(1.0)))
    run_until("ingest", recipe(root), Report())
    return root


@pytest.fixture
def root(first_run, tmp_path) -> Path:
    shutil.copytree(first_run, tmp_path / "copy")
    return tmp_path / "copy"


def recipe(root: Path, **flags):
    return read_recipe(str(root / "clips.zip"), {**FLAGS, "store": str(root / "artifacts"), **flags})


def planned(root: Path, **flags) -> list[tuple[str, str | None]]:
    """(state, name) of each stage of a training."""
    asked = recipe(root, **flags)
    return [
        (run.state.value, run.fingerprint)
        for run in plan(asked, Store(asked.store), resolve_inputs(asked, fetch=False)).runs
    ]


@pytest.mark.parametrize("limits", [WIDER, NARROWER], ids=["wider", "narrower"])
@pytest.mark.parametrize("limit", WIDER)
def test_a_limit_that_is_not_exceeded_makes_nothing_again(root, limit, limits):
    before = planned(root)
    assert before[0][0] == "HIT"
    assert planned(root, **{limit: limits[limit]}) == before


@pytest.mark.parametrize("limit", ["max_clips", "max_members", "max_member_bytes", "max_total_bytes"])
def test_a_limit_that_a_finished_ingest_exceeds_still_refuses_it(root, limit):
    with pytest.raises((DatasetFaults, SourceUnreadable)) as caught:
        run_until("ingest", recipe(root, **{limit: TOO_NARROW[limit]}), Report())
    assert limit.replace("_", "-") in str(caught.value).replace("_", "-"), "the message names what to raise"


def test_a_compression_ratio_below_that_of_a_finished_ingest_still_refuses_it(tmp_path, monkeypatch):
    monkeypatch.setattr(limits_module, "RATIO_FLOOR_BYTES", 1 << 20)
    files = {"a.wav": sound(tone(8.0, level=0.001)), "a.txt": b"nearly silent", **clips("b")}
    zipped(tmp_path / "clips.zip", files, zipfile.ZIP_DEFLATED)
    run_until("ingest", recipe(tmp_path), Report())
    with pytest.raises(DatasetFaults, match="max_compression_ratio"):
        run_until("ingest", recipe(tmp_path, max_compression_ratio=TOO_NARROW["max_compression_ratio"]), Report())


def test_plan_reports_an_exceeded_limit(root):
    asked = recipe(root, max_clips=1)
    (run, *_) = plan(asked, Store(asked.store), resolve_inputs(asked, fetch=False)).runs
    assert (run.state.value, run.reason) == ("MISS", "max_clips 2000 -> 1")


def test_nothing_is_run_for_a_wider_limit(root, monkeypatch):
    seen: list[object] = []
    monkeypatch.setattr("stages.ingest.run.ingest", counted(ingest, seen))
    run_until("ingest", recipe(root, **WIDER), Report())
    assert not seen


def test_with_split_recordings_the_limit_on_clips_stays_in_the_fingerprint():
    members = [Member(name="a.wav", num_bytes=10, digest="sha256:00")]
    split = replace(PARAMS, long_clips="split", max_clips=7)
    assert with_effective_limits(split, members).max_clips == 7
    assert with_effective_limits(replace(split, long_clips="first"), members).max_clips == IngestParams.max_clips


any_member = st.builds(
    Member,
    name=st.from_regex(r"[a-z]{1,3}\.(wav|txt|md)", fullmatch=True),
    num_bytes=st.integers(0, 5 << 30),
    digest=st.just("sha256:00"),
    packed_bytes=st.none() | st.integers(0, 5 << 20),
)
any_limits = st.fixed_dictionaries(
    {
        "max_clips": st.integers(1, 5000),
        "max_member_bytes": st.integers(1, 6 << 30),
        "max_total_bytes": st.integers(1, 100 << 30),
        "max_compression_ratio": st.floats(1, 5000),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.lists(any_member, max_size=8), any_limits, any_limits)
def test_effective_limits_are_equal_exactly_where_neither_request_refuses_anything(members, one, other):
    first, second = (replace(PARAMS, **limits) for limits in (one, other))
    first_limits, second_limits = with_effective_limits(first, members), with_effective_limits(second, members)
    assert with_effective_limits(first_limits, members) == first_limits, "a second call changes nothing"
    refused = [name for name in one if not _holds(name, members, first) or not _holds(name, members, second)]
    assert {name for name in one if getattr(first_limits, name) != getattr(second_limits, name)} <= set(refused)
    for params, made in ((first, first_limits), (second, second_limits)):
        assert all(_holds(name, members, params) == _holds(name, members, made) for name in one)


def _holds(name: str, members: list[Member], params: IngestParams) -> bool:
    """Whether the files stay within one limit, computed in another way."""
    limit = getattr(params, name)
    if name == "max_clips":
        return len([member for member in members if member.name.endswith(".wav")]) <= limit
    if name == "max_total_bytes":
        return sum(member.num_bytes for member in members) <= limit
    if name == "max_member_bytes":
        return all(member.num_bytes <= limit for member in members)
    packed = [member for member in members if member.packed_bytes is not None and member.num_bytes >= 512 << 20]
    return all(member.num_bytes / max(1, member.packed_bytes) <= limit for member in packed)
