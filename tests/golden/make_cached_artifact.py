"""Make the cached encode artifact: three recorded clips, ingested and encoded with the small golden family.

    python -m tests.golden.make_cached_artifact

    cached/<format>/encode/   manifest.parquet, prompts.parquet and facts.json: the artifact, and its receipt's facts
    cached/<format>/shared/   the shards of latents and prompt embeddings it names

To be run again only when an encoding is meant to change: tests compare with what lies here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from cache.shards import formats
from stages.contract import Artifact, Inputs, Resources, Workspace
from stages.encode.run import encode
from stages.encode.stage import EncodeParams
from stages.ingest.run import ingest
from stages.ingest.source import open_source
from stages.ingest.stage import IngestParams
from stages.models._folder import open_folder

GOLDEN = Path(__file__).parent
FAMILY = GOLDEN / "tiny-s"
CACHED = GOLDEN / "cached"
CLIPS = ("clip0", "clip2", "clip3")
NATIVE_SAMPLES = 120 * 44_100


def encoded(format: str, place: Path) -> Artifact:
    """The three clips, ingested and encoded in `place` as a store does it, latents unrounded."""
    clips = place / "clips"
    clips.mkdir(parents=True)
    for name in CLIPS:
        for path in (FAMILY / "preencode" / "wavs").glob(f"{name}.*"):
            shutil.copyfile(path, clips / path.name)
    source = open_source(clips)
    found = ingest(Inputs(source=source), IngestParams(native_samples=NATIVE_SAMPLES), workspace(place, "ingest"))
    ingested = Artifact(stage="ingest", fingerprint=source.fingerprint, directory=place / "ingest", facts=found.facts)
    params = EncodeParams(model="tiny-base", latent_format=format, latent_dtype="float32")
    inputs = Inputs(artifacts={"ingest": ingested}, weights=open_folder("tiny-s", FAMILY))
    outcome = encode(inputs, params, workspace(place, "encode"))
    return Artifact(stage="encode", fingerprint=format, directory=place / "encode", facts=outcome.facts)


def workspace(place: Path, stage: str) -> Workspace:
    """A stage's workspace in `place`, on one CPU."""
    directory = place / stage
    directory.mkdir(parents=True)
    resources = Resources(device="cpu", workers=1, threads=1)
    return Workspace(directory=directory, shared=place / "shared", resources=resources)


def main() -> None:
    """Write `cached/` anew."""
    shutil.rmtree(CACHED, ignore_errors=True)
    for format in formats():
        with TemporaryDirectory() as folder:
            place, kept = Path(folder), CACHED / format
            artifact = encoded(format, place)
            shutil.copytree(artifact.directory, kept / "encode")
            (kept / "encode" / "facts.json").write_text(json.dumps(artifact.facts, indent=1) + "\n", encoding="utf-8")
            for pool in ("latents", "prompts"):
                ignored = shutil.ignore_patterns("*.sqlite*")  # made again from the shards
                shutil.copytree(place / "shared" / pool, kept / "shared" / pool, ignore=ignored)
    total = sum(path.stat().st_size for path in CACHED.rglob("*") if path.is_file())
    print(f"{CACHED}: {total:,} bytes")


if __name__ == "__main__":
    main()
