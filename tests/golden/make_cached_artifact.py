"""Make the cached encode artifact: three recorded clips, encoded with the small golden family.

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

import numpy as np
import soundfile

from cache.fingerprint import digest_file
from cache.manifest import write_rows
from cache.shards import formats
from stages.contract import Artifact, Inputs, Resources, Workspace
from stages.encode.run import encode
from stages.encode.stage import EncodeParams
from stages.models.checkpoint_folder import open_folder
from stages.records import Clip
from tests.prepared_clips import write_prepared

GOLDEN = Path(__file__).parent
FAMILY = GOLDEN / "tiny-s"
CACHED = GOLDEN / "cached"
WAVS = FAMILY / "preencode" / "wavs"
CLIPS = ("clip0", "clip2", "clip3")
RATE, RATIO = 44_100, 4096


def encoded(format: str, place: Path) -> Artifact:
    """The three clips, encoded in `place` as a store does it, latents unrounded."""
    inputs = Inputs(artifacts={"ingest": prepared(place)}, weights=open_folder("tiny-s", FAMILY))
    params = EncodeParams(model="tiny-base", latent_format=format, latent_dtype="float32")
    directory = place / "encode"
    directory.mkdir()
    resources = Resources(device="cpu", threads=1)
    outcome = encode(inputs, params, Workspace(directory=directory, shared=place / "shared", resources=resources))
    return Artifact(stage="encode", fingerprint=format, directory=directory, facts=outcome.facts)


def prepared(place: Path) -> Artifact:
    """The clips as ingest leaves them; made by hand, for this is about what comes after."""
    clips = [prepared_clip(WAVS / f"{name}.wav", place / "shared") for name in CLIPS]
    (place / "ingest").mkdir(parents=True)
    write_rows(place / "ingest" / "manifest.parquet", clips, Clip)
    longest = max(clip.num_samples for clip in clips)
    facts = {
        "audio_params": {"sample_rate_hz": RATE},
        "num_clips": len(clips),
        "window_samples": longest,
        "window_frames": -(-longest // RATIO),
        "duration_seconds": longest / RATE,
    }
    return Artifact(stage="ingest", fingerprint="made by hand", directory=place / "ingest", facts=facts)


def prepared_clip(wav: Path, shared: Path) -> Clip:
    """One clip's row, and its audio as 24 bit FLAC."""
    audio_NC, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    assert rate == RATE
    file = Path("prepared") / f"{wav.stem}.flac"
    write_prepared(shared / file, np.broadcast_to(audio_NC, (len(audio_NC), 2)))
    return Clip(
        clip_id=wav.stem,
        audio=file.as_posix(),
        digest=digest_file(wav),
        num_samples=len(audio_NC),
        source_sample_rate_hz=RATE,
        num_channels=audio_NC.shape[1],
        crop_start=0,
        num_samples_cut=0,
        num_samples_padded=0,
        seconds_total=-(-len(audio_NC) // RATE),
        prompt=wav.with_suffix(".txt").read_text("utf-8").strip(),
        caption_source=f"{wav.stem}.txt",
    )


def copied(format: str, place: Path) -> Artifact:
    """The artifact of the tree in a store of its own, for pools keep their registry beside the shards."""
    shutil.copytree(CACHED / format, place, dirs_exist_ok=True)
    facts = json.loads((place / "encode" / "facts.json").read_text("utf-8"))
    return Artifact(stage="encode", fingerprint="cached", directory=place / "encode", facts=facts)


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
