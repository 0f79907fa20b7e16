"""explain, status and doctor."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cache.registry import Registry
from cache.store import Store
from pipeline.cli import app
from pipeline.errors import ClipNotFound
from pipeline.execution.runner import run_until
from pipeline.maintenance.doctor import BAD, GOOD, run_checks
from pipeline.maintenance.status import status_json, status_lines
from pipeline.plan.explain import Finding, explain
from pipeline.report import Report
from pipeline.request.recipe import read_recipe
from pipeline.request.resolve import ResolvedInputs, resolve_inputs
from tests.small_datasets import clips, sound, tone, zipped

FLAGS = {"model": "tiny-base", "pre_encode": True, "workers": 1, "threads": 1, "number_of_steps": 1, "rank": 1}
FILES = clips("low", "pads/warm", seconds=0.3)


def recipe(root: Path, **flags):
    return read_recipe(str(root / "clips.zip"), {**FLAGS, "store": str(root / "artifacts"), **flags})


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("first")
    zipped(root / "clips.zip", FILES)
    run_until("encode", recipe(root), Report())
    return root


@pytest.fixture
def root(first_run, tmp_path) -> Path:
    shutil.copytree(first_run, tmp_path / "copy")
    return tmp_path / "copy"


def explained(root: Path, clip: str | None = "low", found: ResolvedInputs | None = None, **flags) -> dict[str, Finding]:
    asked = recipe(root, **flags)
    store = Store(asked.store)
    return {one.what: one for one in explain(asked, store, found or resolve_inputs(asked, fetch=False), clip)}


def states(findings: dict[str, Finding]) -> list[str]:
    return [one.state for one in findings.values()]


def test_every_part_of_a_cached_clip_is_a_hit_with_its_location(root):
    findings = explained(root)
    assert list(findings) == ["data", "prepared", "latents", "prompt"]
    assert states(findings) == ["HIT"] * 4
    assert "shared/latents/" in findings["latents"].reason


def test_a_clip_is_found_with_or_without_its_suffix_and_a_wrong_name_gets_similar_ones(root):
    assert explained(root, "pads/warm.wav") == explained(root, "pads/warm")
    with pytest.raises(ClipNotFound, match="Similar names: pads/warm"):
        explained(root, "pads/worm")


def test_another_precision_is_named_as_the_field_that_changed(root):
    findings = explained(root, latent_dtype="float32")
    assert states(findings) == ["HIT", "HIT", "MISS", "HIT"]
    assert findings["latents"].reason.startswith("latent_dtype float16 -> float32 (since encode ")


def test_another_autoencoder_is_named_with_the_models_both_came_from(root):
    found = resolve_inputs(recipe(root), fetch=False)
    weights = replace(found.weights, digests={**found.weights.digests, "autoencoder": "e" * 64})
    reason = explained(root, found=replace(found, weights=weights))["latents"].reason
    assert f"autoencoder {found.weights.digests['autoencoder'][:8]} (tiny-base) -> eeeeeeee (tiny-base)" in reason


def test_changed_bytes_and_an_edited_caption_are_distinguished(root):
    zipped(root / "clips.zip", {**FILES, "low.wav": sound(tone(0.4))})
    findings = explained(root)
    assert states(findings) == ["MISS", "MISS", "MISS", "HIT"], "captions are read before ingest has run"
    assert "its bytes changed since ingest" in findings["data"].reason
    assert findings["latents"].reason.startswith("its bytes changed (since encode ")
    zipped(root / "clips.zip", {**FILES, "low.txt": b"deep"})
    before = explained(root)
    assert states(before) == ["HIT", "HIT", "HIT", "MISS"]
    assert before["prompt"].reason.startswith("prompt tone number 0 -> deep (since encode ")
    run_until("ingest", recipe(root), Report())
    assert explained(root)["prompt"] == before["prompt"], "ingest makes of it what was said before"


def test_a_prompt_with_a_faulty_caption_is_left_to_ingest(root):
    zipped(root / "clips.zip", {**FILES, "low.txt": b""})
    finding = explained(root)["prompt"]
    assert (finding.state, finding.reason) == ("?", "its caption is missing or has a fault; ingest says which")


def test_a_prompt_includes_its_trigger_phrase_and_template_before_ingest_has_run(root):
    zipped(root / "clips.zip", {**FILES, "low.json": b'{"genre": "dub"}', "pads/warm.json": b'{"genre": "ambient"}'})
    reason = explained(root, caption_template="{genre}", trigger_phrase="zxq")["prompt"].reason
    assert reason.startswith("prompt tone number 0 -> zxq, dub (since encode "), reason


def test_a_new_clip_was_never_seen_and_a_renamed_one_is_known_under_its_old_name(root):
    zipped(root / "clips.zip", {**clips("new", seconds=0.9), "deep.wav": FILES["low.wav"], "deep.txt": b"deep"})
    assert [explained(root, "new")[what].reason for what in ("data", "latents")] == ["never seen", "never made"]
    findings = explained(root, "deep")
    assert states(findings)[:3] == ["HIT"] * 3
    assert findings["data"].reason.endswith("as low")


def test_a_lost_shard_is_the_reason(root):
    (shard,) = (root / "artifacts" / "shared" / "latents").glob("*.parquet")
    shard.unlink()
    assert explained(root)["latents"].reason == f"shard latents/{shard.name} is gone"


def test_clips_of_a_missing_shard_count_as_clips_to_encode_in_the_plan(root):
    from pipeline.plan.plan import plan

    (shard,) = (root / "artifacts" / "shared" / "latents").glob("*.parquet")
    assert Registry(shard.parent, "parquet").shards()
    shard.unlink()
    asked = recipe(root)
    runs = plan(asked, Store(asked.store), resolve_inputs(asked, fetch=False), "encode").runs
    assert runs[1].state.value == "RESUME"
    assert runs[1].reason.endswith("2 of 2 clips to encode")


def test_the_command_prints_every_clip_for_people_and_programs(root):
    call = ["explain", str(root / "clips.zip"), "--store", str(root / "artifacts"), "--model", "tiny-base"]
    shown = CliRunner().invoke(app, call)
    assert shown.stdout.splitlines()[0] == "low"
    found = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)["findings"]
    assert {one["clip_id"] for one in found} == {"low", "pads/warm"}
    assert {one["state"] for one in found} == {"HIT"}


def test_status_lists_which_runs_use_what_and_how_much_is_unused(root):
    store = Store(root / "artifacts")
    known = status_json(store)
    by_stage = {entry["stage"]: entry for entry in known["artifacts"]}
    assert by_stage["ingest"]["used_by"] == [f"encode {by_stage['encode']['fingerprint'][:12]}"]
    assert by_stage["encode"]["needs"]["num_files"] == 2
    assert by_stage["ingest"]["needs"]["num_files"] == 2
    assert known["shared"]["latents"]["num_unnamed"] == 0
    assert known["num_bytes"] == store.sizes().total
    store.drop("encode", by_stage["encode"]["fingerprint"])
    assert status_json(store)["shared"]["latents"]["num_unnamed"] == 1
    assert any("1 (" in line and f"`sa3-trainer gc --store {store.root}`" in line for line in status_lines(store))


def test_doctor_accepts_this_environment_and_leaves_nothing_behind(tmp_path):
    checks = run_checks(tmp_path / "artifacts")
    assert {check.area for check in checks} == {"python", "packages", "devices", "fits", "weights", "store"}
    assert [check for check in checks if check.state == BAD] == []
    by_name = {check.name: check for check in checks}
    assert by_name["lock"].message == "a second writer is refused"
    assert by_name["torch"].state == GOOD
    assert list(tmp_path.iterdir()) == []


def test_doctor_reports_a_package_outside_its_range_and_fails(tmp_path, monkeypatch):
    from importlib import metadata

    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "pyarrow" else version(name))
    done = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "artifacts"), "--json"])
    assert done.exit_code == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert (checks["pyarrow"]["state"], checks["numpy"]["state"]) == (BAD, GOOD)
    assert "make setup" in checks["pyarrow"]["said"]
