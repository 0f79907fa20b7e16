"""Trainings are killed (SIGKILL) at random moments, or run out of disk; the next run ends with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.test_pipeline_crash import Driver, driver  # noqa: F401 - the fixture

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

STEPS = 8
COMMON = {
    "number_of_steps": STEPS,
    "checkpoint_every": 2,
    "rank": 2,
    "include": ["layers.0.self_attn"],
    "batch_size": 2,
}
KINDS = ("lora", "dora-rows", "dora-cols", "bora", "lora-xs", "dora-rows-xs", "bora-xs")
CASES = [
    *({"adapter_type": kind, "pre_encode": True, "base_precision": "fp32"} for kind in KINDS),
    *({"adapter_type": kind, "pre_encode": False, "base_precision": "bf16"} for kind in ("dora-rows", "bora")),
    {
        "adapter_type": "dora-rows",
        "pre_encode": True,
        "ema_decay": 0.9,
        "gradient_accumulation": 2,
        "gradient_clip": 0.1,
    },
]
RESULTS = ("adapter*.safetensors", "*.parquet", "checkpoints/*/tensors.safetensors")


@dataclass(kw_only=True)
class UninterruptedRun:
    """A store with everything before train, and the results of an uninterrupted training in it."""

    store: Path
    files: dict[str, bytes]
    seconds: float
    calls: int
    largest: int


def asked(driver: Driver, root: Path, flags: dict[str, Any], **ending: Any) -> dict[str, Any]:  # noqa: F811
    return driver.ask(root, "parquet", last="train", flags={**COMMON, **flags}, **ending)


def left(root: Path) -> dict[str, bytes]:
    """Results that must not depend on how often a training was stopped."""
    (artifact,) = (root / "artifacts" / "train").iterdir()
    paths = [path for pattern in RESULTS for path in artifact.glob(pattern)]
    return {path.relative_to(artifact).as_posix(): path.read_bytes() for path in paths}


def uninterrupted(driver: Driver, root: Path, flags: dict[str, Any]) -> UninterruptedRun:  # noqa: F811
    first = asked(driver, root / "first", flags)
    assert first["code"] == 0, first["said"]
    files = left(root / "first")
    before = root / "before"
    shutil.copytree(root / "first", before)
    shutil.rmtree(before / "artifacts" / "train")
    again = asked(driver, shutil.copytree(before, root / "again"), flags)
    assert left(root / "again") == files
    largest = max(len(content) for content in files.values())
    return UninterruptedRun(store=before, files=files, seconds=again["seconds"], calls=again["calls"], largest=largest)


@pytest.fixture(scope="module")
def whole(driver, tmp_path_factory) -> UninterruptedRun:  # noqa: F811
    return uninterrupted(driver, tmp_path_factory.mktemp("whole"), CASES[1])


def finish(driver: Driver, root: Path, flags: dict[str, Any], known: UninterruptedRun) -> None:  # noqa: F811
    ended = asked(driver, root, flags)
    assert ended["code"] == 0, ended["said"]
    assert left(root) == known.files
    store = root / "artifacts"
    assert list((store / "scratch").iterdir()) == []
    assert not list(store.rglob("*.tmp")) and not list(store.rglob("*.writing"))


def drawn_kill(rng: random.Random, known: UninterruptedRun) -> dict[str, Any]:
    """A random time, or one of the calls that make work durable."""
    if rng.random() < 0.5:
        return {"after": rng.uniform(0.1, known.seconds)}
    return {"at": rng.randint(1, known.calls)}


def killed(
    driver: Driver,  # noqa: F811
    root: Path,
    flags: dict[str, Any],
    known: UninterruptedRun,
    rng: random.Random,
    most: int,
) -> int:
    """Kill up to so many runs, one after the other; returns how many were still running when they were killed."""
    for stops in range(most):
        ended = asked(driver, root, flags, **drawn_kill(rng, known))
        if ended["code"] == 0:
            return stops
        assert ended["code"] == -signal.SIGKILL, ended["said"]
    return most


@pytest.mark.parametrize(
    ("cases", "most"),
    [pytest.param(CASES[1:2], 1, id="a few"), pytest.param(CASES, 4, id="many", marks=pytest.mark.slow)],
)
def test_a_killed_training_ends_with_the_bytes_of_an_uninterrupted_one(whole, driver, tmp_path, cases, most):  # noqa: F811
    rng, kills = random.Random(f"{len(cases)} {most}"), 0
    for number, flags in enumerate(cases):
        known = whole if flags == CASES[1] else uninterrupted(driver, tmp_path / str(number), flags)
        before = kills
        while kills - before < 1.5 * most:
            root = shutil.copytree(known.store, tmp_path / f"{number} {kills}")
            kills += killed(driver, root, flags, known, rng, most)
            finish(driver, root, flags, known)
            shutil.rmtree(root)
    assert kills >= 1.5 * most * len(cases)
    print(f"{kills} trainings killed, {len(cases)} kinds of them")


@pytest.mark.parametrize("times", [pytest.param(1, id="once"), pytest.param(12, id="often", marks=pytest.mark.slow)])
def test_a_training_on_a_full_disk_says_so_and_the_next_one_finishes(whole, driver, tmp_path, times):  # noqa: F811
    rng, flags, known = random.Random(f"full {times}"), CASES[1], whole
    for number in range(times):
        root = shutil.copytree(known.store, tmp_path / str(number))
        ended = asked(driver, root, flags, fsize=rng.randint(0, known.largest - 1))
        assert ended["code"] == 1, ended["said"]
        assert "error: " in ended["said"] and "Traceback" not in ended["said"], ended["said"]
        finish(driver, root, flags, known)
        shutil.rmtree(root)
    print(f"{times} trainings on a full disk")
