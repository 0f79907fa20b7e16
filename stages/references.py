"""What an artifact references outside its own folder: shared files, and items in them.

Read from the manifests once, right before the commit, and again by `verify`. Light: the manifest reader is imported
when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.location import Location


def shared_file_sizes(stage: str, directory: Path, facts: Mapping[str, Any], shared: Path) -> dict[str, int]:
    """Bytes of every shared file that a stage's result references, by path inside the shared folder.

    Args:
        directory: the folder with the stage's files.
        facts: the facts that the stage returned.

    Raises:
        FileNotFoundError: one of the files is gone already.
    """
    names = _NAMES.get(stage)
    paths = set(names(directory, facts)) if names else set()
    return {path: (shared / path).stat().st_size for path in sorted(paths)}


def _prepared_audio(directory: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    from cache.manifest import iter_rows
    from stages.records import Clip

    return (clip.audio for clip in iter_rows(directory / "manifest.parquet", Clip))


def _shards(directory: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    from cache.manifest import iter_rows
    from stages.records import EncodedClip, PromptRow

    yield f"latents/{facts['silence']['shard']}"
    for clip in iter_rows(directory / "manifest.parquet", EncodedClip):
        yield f"latents/{clip.shard}"
    for prompt in iter_rows(directory / "prompts.parquet", PromptRow):
        yield f"prompts/{prompt.shard}"


_NAMES: Mapping[str, Callable[[Path, Mapping[str, Any]], Iterator[str]]] = {
    "ingest": _prepared_audio,
    "encode": _shards,
}
"""By stage, the shared files that its results reference. The result of a training is self-contained."""


def item_locations(directory: Path) -> Iterator[tuple[str, Location]]:
    """(`latents` or `prompts`, location) of each row of an encode artifact's manifests."""
    from cache.manifest import iter_rows
    from stages.records import EncodedClip, PromptRow

    for clip in iter_rows(directory / "manifest.parquet", EncodedClip):
        yield "latents", clip.location
    for prompt in iter_rows(directory / "prompts.parquet", PromptRow):
        yield "prompts", prompt.location
