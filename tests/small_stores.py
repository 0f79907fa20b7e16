"""Builds stores whose runs are a few bytes, for tests of maintenance commands."""

from __future__ import annotations

from pathlib import Path

from cache import run_metadata
from cache.fingerprint import fingerprint
from cache.receipt import Receipt
from cache.shared_files import write_shared_files
from cache.store import Store

LONG_AGO = "2020-01-01T00:00:00+00:00"


class StoreBuilder:
    """Adds runs of a few bytes to a store: with names, shared files and folders as real ones have, and no audio."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def artifact(self, stage: str, inputs: dict[str, str], shared_files: dict[str, bytes], **more) -> str:
        """Commits an artifact that references these shared files, and writes missing ones; returns its fingerprint."""
        components = more.get("components", {})
        name = fingerprint(
            stage,
            {
                "inputs": inputs,
                "needs": sorted(shared_files),
                "model": more.get("model", "tiny-base"),
                "components": components,
            },
        )
        scratch = self.start_run(stage, inputs, shared_files, name)
        if shared_files:
            write_shared_files(scratch, {path: len(content) for path, content in shared_files.items()})
        receipt = Receipt(
            stage=stage,
            fingerprint=name,
            identity=name,
            version=1,
            inputs=inputs,
            components=components,
            params={"model": more.get("model", "tiny-base")},
            finished=more.get("finished", LONG_AGO),
        )
        self.store.drop(stage, name)
        self.store.commit(stage, name, scratch, receipt)
        run_metadata.remove(self.store, scratch.name)
        return name

    def start_run(self, stage: str, inputs: dict[str, str], shared_files: dict[str, bytes], name: str) -> Path:
        """Starts a run and writes its shared files; returns its scratch folder."""
        scratch = self.store.scratch(stage, name)
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "manifest").write_text("rows")
        run_metadata.write(
            self.store, run_metadata.UnfinishedRun(name=scratch.name, stage=stage, identity=name, inputs=inputs)
        )
        for path, content in shared_files.items():
            file = self.store.shared / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_bytes(content)
        return scratch

    def ingest(self, clips: tuple[int, ...], **more) -> str:
        return self.artifact("ingest", {"source": fingerprint("clips", {"clips": clips})}, prepared(clips), **more)

    def encode(self, clips: tuple[int, ...], **more) -> str:
        return self.artifact("encode", {"ingest": self.ingest(clips)}, shards(clips), **more)

    def train(self, clips: tuple[int, ...], **more) -> str:
        return self.artifact("train", {"encode": self.encode(clips, **more)}, {}, **more)

    def names(self) -> list[str]:
        return sorted(f"{receipt.stage}" for receipt in self.store.receipts())

    def shared(self) -> set[str]:
        return {path.relative_to(self.store.shared).as_posix() for path in self.store.shared.rglob("*.*")}


def prepared(clips: tuple[int, ...]) -> dict[str, bytes]:
    """One prepared file per clip."""
    keys = [fingerprint("prepared", {"clip": clip}) for clip in clips]
    return {f"prepared/{key[:2]}/{key}.flac": b"sound" for key in keys}


def shards(clips: tuple[int, ...]) -> dict[str, bytes]:
    """Shards of two clips each, so that overlapping datasets share some, and one shard of prompts."""
    names = {fingerprint("shard", {"pair": clip // 2})[:32] for clip in clips}
    prompts = {fingerprint("prompt shard", {"clips": clips})[:32]}
    return {f"latents/{name}.parquet": b"latents" for name in names} | {
        f"prompts/{name}.parquet": b"words" for name in prompts
    }


def discard_message(line: str) -> None:
    """Ignores a message."""


def interrupt_run(builder: StoreBuilder, stage: str, clips: tuple[int, ...]) -> None:
    """Starts a run of a stage, whose inputs are finished, and leaves it unfinished."""
    inputs = {
        "ingest": lambda: {"source": fingerprint("clips", {"clips": clips})},
        "encode": lambda: {"ingest": builder.ingest(clips)},
        "train": lambda: {"encode": builder.encode(clips)},
    }[stage]()
    shared_files = {"ingest": prepared, "encode": shards, "train": lambda clips: {}}[stage](clips)
    builder.start_run(stage, inputs, shared_files, fingerprint("stopped", {"stage": stage, "clips": clips}))
