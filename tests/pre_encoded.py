"""Copies of a recorded pre-encoded folder, which tests change, import and export."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.manifest import read_rows
from cache.shard_pool import ShardPool
from stages.contract import Artifact, Inputs, Resources, Weights, Workspace
from stages.encode.pre_encoded.exporting import export_folder
from stages.encode.pre_encoded.importing import import_folder
from stages.encode.stage import ImportParams
from stages.errors import DatasetFaults
from stages.ingest.source.listing import open_source
from stages.records import EncodedClip, ModelSpec
from tests.small_networks import TINY

WAYS = TINY / "preencode"
"""Output of the reference's tool for four clips: one by one, and in padded batches of two."""
SPEC = ModelSpec(
    name="tiny-s",
    inference_model="tiny-s",
    repo=None,
    sample_rate_hz=44_100,
    downsampling_ratio=4096,
    latent_channels=16,
    max_samples=30 * 4096,
    max_seconds=2,
)
USUAL: dict[str, Any] = {
    "model": "tiny-s",
    "native_samples": SPEC.native_samples,
    "duration_seconds": None,
    "max_clips": 2000,
    "skip_bad": False,
}
"""Params of an import."""


@dataclass
class ImportSetup:
    """A pre-encoded folder and a store."""

    root: Path
    weights: Weights
    folder: Path
    said: list[str] = field(default_factory=list)
    shown: list[tuple[int, int, str]] = field(default_factory=list)

    def read(self, *, stop_after: int | None = None, **changes: Any) -> Artifact:
        """Import the folder as it is now."""
        directory = self.root / "encode"
        directory.mkdir(exist_ok=True)
        asked = iter(range(10_000))
        work = Workspace(
            directory=directory,
            shared=self.root / "shared",
            resources=Resources(device="cpu", threads=1),
            say=self.said.append,
            progress=lambda done, total, note="", **_: self.shown.append((done, total, note)),
            should_stop=lambda: stop_after is not None and next(asked) >= stop_after,
        )
        params = ImportParams(**(USUAL | {"latent_dtype": "float32"} | changes))
        outcome = import_folder(Inputs(source=open_source(self.folder), weights=self.weights), params, work)
        return Artifact(stage="encode", fingerprint="imported", directory=directory, facts=outcome.facts)

    def write(self, artifact: Artifact, name: str = "written") -> list[Path]:
        return export_folder(artifact, self.root / "shared", SPEC, self.root / name, self.said.append)

    def metadata(self, stem: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{stem}.json").read_text("utf-8"))  # type: ignore[no-any-return]

    def change(self, stem: str, **fields: Any) -> None:
        """Other metadata; a field that is None is taken out."""
        about = {name: value for name, value in (self.metadata(stem) | fields).items() if value is not None}
        (self.folder / f"{stem}.json").write_text(json.dumps(about))

    def faults(self, **changes: Any) -> list[tuple[str, str]]:
        with pytest.raises(DatasetFaults) as caught:
            self.read(**changes)
        return [(fault.member, fault.type) for fault in caught.value.faults]

    def latents(self, row: EncodedClip) -> np.ndarray:
        pool = ShardPool(self.root / "shared" / "latents")
        return pool.read(pool.locate([row.item_key])[row.item_key])

    def files(self) -> dict[str, bytes]:
        found = [*(self.root / "shared").glob("*/*.parquet"), *(self.root / "encode").glob("*.parquet")]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}


def copied(root: Path, weights: Weights, way: str) -> ImportSetup:
    shutil.copytree(WAYS / way, root / "pre-encoded")
    return ImportSetup(root, weights, root / "pre-encoded")


def rows(artifact: Artifact) -> list[EncodedClip]:
    return read_rows(artifact.directory / "manifest.parquet", EncodedClip)


def array(place: ImportSetup, change: Any, name: str = "0000000000.npy") -> None:
    np.save(place.folder / name, change(np.load(place.folder / name)))
