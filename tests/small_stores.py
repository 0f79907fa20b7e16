"""Stores with runs of a few bytes, for what looks after a store."""

from __future__ import annotations

from pathlib import Path

from cache import run_metadata
from cache.fingerprint import fingerprint
from cache.receipt import Receipt
from cache.shared_files import write_shared_files
from cache.store import Store

LONG_AGO = "2020-01-01T00:00:00+00:00"


class Shop:
    """A store with runs of a few bytes: the names, needs and folders of real ones, no audio."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def artifact(self, stage: str, inputs: dict[str, str], needs: dict[str, bytes], **more) -> str:
        """Commit an artifact that names these shared files, written if they are not there."""
        name = fingerprint(stage, {"inputs": inputs, "needs": sorted(needs), "model": more.get("model", "tiny-base")})
        scratch = self.begun(stage, inputs, needs, name)
        if needs:
            write_shared_files(scratch, {path: len(content) for path, content in needs.items()})
        receipt = Receipt(
            stage=stage,
            fingerprint=name,
            identity=name,
            version=1,
            inputs=inputs,
            params={"model": more.get("model", "tiny-base")},
            finished=more.get("finished", LONG_AGO),
        )
        self.store.drop(stage, name)
        self.store.commit(stage, name, scratch, receipt)
        run_metadata.remove(self.store, scratch.name)
        return name

    def begun(self, stage: str, inputs: dict[str, str], needs: dict[str, bytes], name: str) -> Path:
        """An unfinished run that has made its shared files."""
        scratch = self.store.scratch(stage, name)
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "manifest").write_text("rows")
        run_metadata.write(
            self.store, run_metadata.UnfinishedRun(name=scratch.name, stage=stage, identity=name, inputs=inputs)
        )
        for path, content in needs.items():
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
        return self.artifact("train", {"encode": self.encode(clips)}, {}, **more)

    def names(self) -> list[str]:
        return sorted(f"{receipt.stage}" for receipt in self.store.receipts())

    def shared(self) -> set[str]:
        return {path.relative_to(self.store.shared).as_posix() for path in self.store.shared.rglob("*.*")}


def prepared(clips: tuple[int, ...]) -> dict[str, bytes]:
    """A prepared file per clip."""
    keys = [fingerprint("prepared", {"clip": clip}) for clip in clips]
    return {f"prepared/{key[:2]}/{key}.flac": b"sound" for key in keys}


def shards(clips: tuple[int, ...]) -> dict[str, bytes]:
    """Two clips to a shard, so that overlapping datasets share some."""
    names = {fingerprint("shard", {"pair": clip // 2})[:32] for clip in clips}
    prompts = {fingerprint("prompt shard", {"clips": clips})[:32]}
    return {f"latents/{name}.parquet": b"latents" for name in names} | {
        f"prompts/{name}.parquet": b"words" for name in prompts
    }


def quiet(line: str) -> None:
    """Nobody listens."""


def stopped(shop: Shop, stage: str, clips: tuple[int, ...]) -> None:
    """A run of that stage that did not come to its end; what it reads is finished."""
    inputs = {
        "ingest": lambda: {"source": fingerprint("clips", {"clips": clips})},
        "encode": lambda: {"ingest": shop.ingest(clips)},
        "train": lambda: {"encode": shop.encode(clips)},
    }[stage]()
    needs = {"ingest": prepared, "encode": shards, "train": lambda clips: {}}[stage](clips)
    shop.begun(stage, inputs, needs, fingerprint("stopped", {"stage": stage, "clips": clips}))
