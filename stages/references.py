"""What an artifact references outside its own folder: shared files, and items in them.

Read from the manifests once, right before the commit, and again by `verify`. Light: the manifest reader is imported
when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cache.location import Location
from stages.records import Clip, EncodedClip, PromptRow


def shared_file_sizes(stage: str, directory: Path, facts: Mapping[str, Any], shared: Path) -> dict[str, int]:
    """Bytes of every shared file that a stage's result references, by path inside the shared folder.

    Args:
        directory: the folder with the stage's files.
        facts: the facts that the stage returned.

    Raises:
        FileNotFoundError: one of the files is gone already.
    """
    return {path: (shared / path).stat().st_size for path in sorted(_shared_files(stage, directory, facts))}


def _shared_files(stage: str, directory: Path, facts: Mapping[str, Any]) -> set[str]:
    """Paths inside the shared folder. The result of a training is self-contained."""
    from cache.manifest import iter_rows

    if stage == "ingest":
        return {clip.audio for clip in iter_rows(directory / "manifest.parquet", Clip)}
    if stage == "encode":
        silence = f"latents/{facts['silence']['shard']}"
        return {silence, *(f"{pool}/{location.shard}" for pool, location in item_locations(directory))}
    return set()


def item_locations(directory: Path) -> Iterator[tuple[str, Location]]:
    """(`latents` or `prompts`, location) of each row of an encode artifact's manifests."""
    from cache.manifest import iter_rows

    for clip in iter_rows(directory / "manifest.parquet", EncodedClip):
        yield "latents", clip.location
    for prompt in iter_rows(directory / "prompts.parquet", PromptRow):
        yield "prompts", prompt.location
