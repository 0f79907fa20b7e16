"""Damage of a store as `verify` reports it and `repair` reads it. Light: standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.receipt import Receipt
from cache.shard_salvage import ShardDamage
from cache.store import Store

SHARD_POOLS = {"latents": "lost latents are encoded again", "prompts": "lost prompts are embedded again"}
"""Pools of shards, and what happens when an item of one is lost."""
ARTIFACT_MEANING = {
    "ingest": "the dataset is listed again; clips that are prepared stay prepared",
    "encode": "its manifest is written again; clips whose latents are intact are not encoded again",
    "train": "the adapter is written again from the last checkpoint; without one the training begins anew",
}
"""What happens when an artifact is damaged, by stage."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One damaged or missing part of a store."""

    kind: str
    """`place`, `receipt`, `artifact`, `rows`, `gone`, `shard`, `prepared` or `source`."""
    path: str
    """Path inside the store."""
    what: str
    meaning: str
    """What it means for the next run."""
    clips: tuple[str, ...] = ()
    """Clips affected, where that is known."""
    detail: Receipt | ShardDamage | None = None
    """What repair needs: the artifact's receipt, or the fault of the shard."""

    def as_json(self) -> dict[str, Any]:
        """The damage for programs."""
        names = ("kind", "path", "what", "meaning")
        return {**{name: getattr(self, name) for name in names}, "clips": list(self.clips)}


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What `verify` checked and found."""

    damages: tuple[Damage, ...]
    num_artifacts: int
    num_shards: int
    num_prepared: int

    @property
    def num_gone(self) -> int:
        """How many of the damages are missing files."""
        return sum(damage.kind == "gone" for damage in self.damages)

    def as_json(self) -> dict[str, Any]:
        """The result for programs."""
        counts = {name: getattr(self, name) for name in ("num_artifacts", "num_shards", "num_prepared")}
        return {"damages": [damage.as_json() for damage in self.damages], "checked": counts}


def path_in_store(store: Store, path: Path) -> str:
    """A path relative to the store's root, with forward slashes."""
    return path.relative_to(store.root).as_posix()


def shard_names(store: Store, pool: str, format: str) -> list[str]:
    """File names of the shards of one format in a pool."""
    from cache.shard_pool import ShardPool  # deferred: numpy

    return list(ShardPool(store.shared / pool, format).shards())
