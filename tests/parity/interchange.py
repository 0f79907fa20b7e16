"""The pre-encoded folder, `file:preencode`: read as the reference's dataset reads it, written as its tool does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cache.shard_pool import ShardPool
from stages.contract import Artifact, Inputs, Resources, Weights, Workspace
from stages.encode.pre_encoded.exporting import export_folder
from stages.encode.pre_encoded.importing import import_folder
from stages.encode.stage import ImportParams
from stages.ingest.source.listing import open_source
from stages.records import ModelSpec
from stages.train.dataset.clips import StoredLatents
from stages.train.dataset.collate import extended_with_silence
from tests.parity.frame import Case, Comparison, Family, checks, exact, failure, graded, information, worst_error

NEUTRAL = ("path", "load_time")
"""Metadata that tells of the machine it was written on."""


@checks(r"file:preencode")
def imported_and_exported(family: Family, case: Case) -> Iterator[Comparison]:
    """Both folders of the tool, read and written again."""
    folder, spec = Path(case.params["folder"]), spec_of(family)
    items = json.loads((folder / "dataset_items.json").read_text("utf-8"))["items"]
    recorded = load_file(folder / "dataset_items.safetensors")
    for way in sorted(path.parent for path in folder.glob("*/silence.npy")):
        its_items = {name: about for name, about in items.items() if name.startswith(f"{way.name}/")}
        with TemporaryDirectory() as place:
            store = Path(place)
            made = imported(family.weights, spec, way, store)
            clips = StoredLatents(made, ShardPool(store / "shared" / "latents"), spec)
            yield from as_dataset_items(way, clips, its_items, recorded)
            files = export_folder(made, store / "shared", spec, store / "written", lambda line: None)
            yield from as_written_by_the_tool(way, files)


def spec_of(family: Family) -> ModelSpec:
    """The recorded model's facts, from its config."""
    sizes = family.weights.sizes
    return ModelSpec(
        name=family.name,
        inference_model=family.name,
        repo=None,
        sample_rate_hz=sizes.sample_rate_hz,
        downsampling_ratio=sizes.downsampling_ratio,
        latent_channels=sizes.latent_channels,
        max_samples=sizes.max_samples,
        max_seconds=-(-sizes.max_samples // sizes.sample_rate_hz),
    )


def imported(weights: Weights, spec: ModelSpec, folder: Path, store: Path) -> Artifact:
    """The folder as an encode artifact, its values unrounded."""
    named = replace(weights, digests=dict.fromkeys(("autoencoder", "text_encoder"), weights.model))
    params = ImportParams(
        model=weights.model,
        native_samples=spec.native_samples,
        latent_dtype="float32",
        duration_seconds=None,
        max_clips=2000,
        skip_bad=False,
    )
    directory = store / "encode"
    directory.mkdir()
    work = Workspace(directory=directory, shared=store / "shared", resources=Resources(device="cpu"))
    outcome = import_folder(Inputs(source=open_source(folder), weights=named), params, work)
    return Artifact(stage="encode", fingerprint=folder.name, directory=directory, facts=outcome.facts)


def as_dataset_items(
    way: Path, clips: StoredLatents, items: Mapping[str, Mapping[str, object]], recorded: Mapping[str, Tensor]
) -> Iterator[Comparison]:
    """Crops of every length, followed by silence, as training reads them.

    What the tool wrote behind a clip's end is left out here, and silence longer than silence.npy is made by repeating
    its last frame, not all of it: the frames that differ for these reasons are shown and decide nothing.
    """
    stems = sorted(path.stem for path in way.glob("*.json"))
    for name, about in items.items():
        index = stems.index(name.rpartition("/")[2])
        row, wanted = clips.rows[index], recorded[name]
        valid, length = row.num_valid_frames, wanted.shape[1]
        yield exact(f"{name}/padding_mask", (torch.arange(length) < valid).int(), recorded[f"{name}/padding_mask"])
        ours = extended_with_silence(clips.read(index, 0, False), clips.silence_CT, length)
        whole_silence = np.load(way / f"{stems[index]}.npy").shape[1] == valid
        alike = min(length, valid + clips.silence_CT.shape[1]) if whole_silence else valid
        yield graded(name, worst_error(ours[:, :alike], wanted[:, :alike]), 0.0)
        if alike < length:
            yield information(f"{name} (frames behind)", ours[:, alike:], wanted[:, alike:])
        for field in ("seconds_start", "seconds_total", "prompt"):
            if getattr(row, field) != about[field]:
                yield failure(f"{name}/{field}", f"{getattr(row, field)!r}, recorded {about[field]!r}")


def as_written_by_the_tool(way: Path, files: list[Path]) -> Iterator[Comparison]:
    """Names, metadata and arrays. One item per batch is written, without padding: the tool's own way by itself."""
    theirs = sorted(path for path in way.iterdir() if path.suffix == ".json")
    ours = [path for path in files if path.suffix == ".json"]
    names = [f"{number:06d}0000" for number in range(len(theirs))]
    if [path.stem for path in ours] != names:
        yield failure(f"{way.name} names", f"{[path.stem for path in ours]}, wanted {names}")
        return
    for mine, other in zip(ours, theirs, strict=True):
        about, wanted = (json.loads(path.read_text("utf-8")) for path in (mine, other))
        valid = sum(wanted["padding_mask"])
        wanted["padding_mask"] = wanted["padding_mask"][:valid]
        differing = [name for name in wanted if name not in NEUTRAL and about.get(name) != wanted[name]]
        if list(about) != list(wanted) or differing:
            yield failure(f"{way.name}/{other.name}", f"fields {list(about)}; differing: {differing}")
        arrays = [np.load(path.with_suffix(".npy")) for path in (mine, other)]
        yield exact(f"{way.name}/{other.stem} written", *(torch.from_numpy(array[:, :valid]) for array in arrays))
    silence, wanted = (np.load(path / "silence.npy") for path in (files[0].parent, way))
    yield exact(f"{way.name}/silence", torch.from_numpy(silence[:, :, : wanted.shape[2]]), torch.from_numpy(wanted))
