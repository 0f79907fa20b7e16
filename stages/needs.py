"""What a finished stage's result names outside its own folder: shared files, and places in them. Light.

Read off the manifests once, right before the commit, and again by `verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.registry import Location


def needed_files(stage: str, directory: Path, facts: Mapping[str, Any], shared: Path) -> dict[str, int]:
    """Bytes of every shared file the result names, by path inside the shared folder.

    Args:
        directory: where the stage left its files.
        facts: what it handed back.

    Raises:
        FileNotFoundError: one of them is gone already.
    """
    return {path: (shared / path).stat().st_size for path in sorted(named_files(stage, directory, facts))}


def named_files(stage: str, directory: Path, facts: Mapping[str, Any]) -> set[str]:
    """Paths inside the shared folder that the result names, whether they are there or not."""
    names = _NAMES.get(stage)
    return set(names(directory, facts)) if names else set()


def _prepared(directory: Path, facts: Mapping[str, Any]) -> Iterator[str]:
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


_NAMES: Mapping[str, Callable[[Path, Mapping[str, Any]], Iterator[str]]] = {"ingest": _prepared, "encode": _shards}
"""Stages whose results name shared files. A training's result holds all it needs."""


def places(directory: Path) -> Iterator[tuple[str, Location]]:
    """(`latents` or `prompts`, where it should lie) of each row of an encoding's manifests."""
    from cache.manifest import iter_rows
    from cache.registry import Location
    from stages.records import EncodedClip, PromptRow

    def place(key: str, row: EncodedClip | PromptRow, num_frames: int) -> Location:
        return Location(item_key=key, shard=row.shard, row=row.row, num_frames=num_frames, checksum=row.checksum)

    for clip in iter_rows(directory / "manifest.parquet", EncodedClip):
        yield "latents", place(clip.item_key, clip, clip.num_frames)
    for prompt in iter_rows(directory / "prompts.parquet", PromptRow):
        yield "prompts", place(prompt.prompt_key, prompt, prompt.num_tokens)
