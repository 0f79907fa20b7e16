"""A base model and its adapters side by side: names of the files, and whether they are there already.

`x.wav` asked for gives `x_base.wav`, `x_adapted.wav` and the record `x_compared.json`: what was asked, and digests of
the two. Light: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.files.atomic_files import atomic_write_bytes
from cache.fingerprint import digest_file, fingerprint
from stages.contract import Source, Weights
from stages.generate.settings import AdapterUse, Generation, Version
from stages.versions import version_of

BASE, ADAPTED = "base", "adapted"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The files of a comparison."""

    out: Path
    """The name from which theirs are made; no file has it."""
    request: str
    """Fingerprint of what was asked for."""

    def file(self, name: str) -> Path:
        """The sound of BASE or ADAPTED."""
        return self.out.with_name(f"{self.out.stem}_{name}{self.out.suffix}")

    @property
    def record(self) -> Path:
        """What was asked for, found, and written."""
        return self.out.with_name(f"{self.out.stem}_compared.json")

    def versions(self, adapters: Sequence[AdapterUse]) -> list[Version]:
        """What to generate."""
        return [
            Version(name=BASE, file=self.file(BASE)),
            Version(name=ADAPTED, file=self.file(ADAPTED), adapters=adapters),
        ]

    def is_free(self) -> bool:
        """Whether no file has one of the names."""
        return not any(file.exists() for file in (self.record, self.file(BASE), self.file(ADAPTED)))

    def earlier_facts(self) -> dict[str, Any] | None:
        """Facts of the same request, if its files are there with the bytes that were written."""
        try:
            content = json.loads(self.record.read_bytes())
            same = content["request"] == self.request and content["digests"] == self._digests()
            return dict(content["facts"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, facts: Mapping[str, object]) -> None:
        """Write the record; the sounds are there. Raises: WriteFailed."""
        content = {"request": self.request, "digests": self._digests(), "facts": facts}
        atomic_write_bytes(self.record, json.dumps(content, indent=1).encode() + b"\n")

    def _digests(self) -> dict[str, str]:
        return {name: digest_file(self.file(name)) for name in (BASE, ADAPTED)}


def comparison(out: Path | None, names: Iterator[Path], request: str) -> Comparison:
    """The files of a comparison: those of the name given, or else of the first that is free or holds the same."""
    if out is not None:
        return Comparison(out=out, request=request)
    asked = (Comparison(out=name, request=request) for name in names)
    return next(one for one in asked if one.is_free() or one.earlier_facts() is not None)


def request_fingerprint(
    weights: Weights, clip: Generation, adapters: Sequence[AdapterUse], like: Source | None, where: Mapping[str, Any]
) -> str:
    """A name for everything that decides how the files sound, by content.

    Args:
        where: device and precision as they were asked for: each gives bytes of its own.
    """
    uses = [{"content": digest_file(use.file), "strength": float(use.strength)} for use in adapters]
    asked = {**asdict(clip), "seconds": float(clip.seconds), "cfg": clip.cfg and float(clip.cfg)}
    record = {
        "version": version_of("stable-audio-3-trainer"),
        "weights": dict(weights.digests),
        "clip": asked,
        "adapters": uses,
        "like": like.fingerprint if like else None,
        "where": {name: where[name] for name in ("device", "base_precision")},
    }
    return fingerprint("comparison", record)


def style_line(facts: Mapping[str, Any]) -> str:
    """The distances to a style in one line; empty if none were asked for."""
    found = facts.get("style_distance")
    if not found:
        return ""
    ways = ("spectral", "embedding")
    measured = [
        f"{way} " + ", ".join(f"{name} {found[name][way]:.2f}" for name in facts["files"] if name in found)
        for way in ways
    ]
    about = f"style distance from the {found['num_clips']} clips in {found['clips']} (1 = as these from each other)"
    return f"{about}: {'; '.join(measured)}"
