"""Stage `ingest`: a dataset's clips checked, prepared and listed in a manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cache.manifest import write_rows
from stages.contract import Inputs, Member, Outcome, Source, Workspace
from stages.disk_space import SpaceNeed, check_space
from stages.errors import DatasetFaults, Fault, PackageMissing, Stopped
from stages.ingest.audio.mpeg_decoder import end_idle_decoders
from stages.ingest.captions.pairing import Pair, Pairing, pair
from stages.ingest.captions.prompts import Prompt, read_prompts, unused_captions
from stages.ingest.clip_warnings import clip_warnings, same_sounds
from stages.ingest.faults import ARCHIVE_WIDE, as_record, fault, fault_lines, sorted_faults
from stages.ingest.prepare_clip import PreparedClip, RecordingJob, estimated_bytes, stored_facts
from stages.ingest.source.archive import close_archives
from stages.ingest.source.limits import apply_limits
from stages.ingest.stage import SOXR, IngestParams, audio_params
from stages.ingest.window import dataset_window, manifest_row
from stages.ingest.workers import results
from stages.plural import pluralized
from stages.records import Clip

MANIFEST = "manifest.parquet"


@dataclass(kw_only=True)
class DatasetContents:
    """Prompts, prepared audio and faults found by reading the files of a dataset, by member name."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    prepared: dict[str, tuple[PreparedClip, ...]] = field(default_factory=dict)
    """The prepared windows of each audio file: one, unless long recordings are split."""
    faults: list[Fault] = field(default_factory=list)

    def add(self, members: Sequence[Member], result: tuple[PreparedClip, ...] | Fault) -> None:
        """Record the result of one audio file, for every member with the same bytes."""
        for member in members:
            if isinstance(result, Fault):
                self.faults.append(replace(result, member=member.name))
                continue
            self.prepared[member.name] = result


def ingest(inputs: Inputs, params: IngestParams, work: Workspace) -> Outcome:
    """Pair, check and prepare every clip of a dataset.

    Every fault of every file is found before the dataset is refused. A clip whose prepared audio is complete in the
    shared folder is not decoded again, whichever run made it. Prepared audio depends on the source bytes and
    `audio_params` alone, not on captions, the window or other clips.

    Raises:
        DatasetFaults: all faults, unless skip_bad leaves out the clips that have them.
        Stopped: a stop was requested; finished clips are kept.
        InsufficientDiskSpace, StageError: the disk or a worker failed.
    """
    source = inputs.source
    assert source is not None, "ingest is planned with a source"
    _check_packages(params)
    pairing = pair(
        apply_limits(source.members, params.limits),
        templated=params.caption_template is not None,
        one_for_all=params.caption is not None,
        table=params.captions,
        others=source.others,
    )
    try:
        contents = _read_dataset(source, pairing, params, work)
    finally:
        close_archives()
        end_idle_decoders()
    clips = _usable_pairs(pairing.pairs, contents)
    num_usable = len(clips) if params.skip_bad or not (pairing.faults or contents.faults) else pairing.num_audio
    faults = sorted_faults([*pairing.faults, *contents.faults, *_count_faults(num_usable, clips, contents, params)])
    unused = unused_captions(pairing.pairs, params)
    noted = [*pairing.warnings, *unused, *same_sounds(pairing.audio), *clip_warnings(contents.prepared, params)]
    warnings = sorted_faults(noted)
    if faults and not (params.skip_bad and _can_be_left_out(faults)):
        _report(work, "warning", warnings)
        skippable = not params.skip_bad and len(clips) >= params.min_clips and _can_be_left_out(faults)
        raise DatasetFaults(faults, skippable=skippable)
    _report(work, "left out", faults)
    _report(work, "warning", warnings)
    return _outcome(clips, contents, faults, warnings, params, work)


def _can_be_left_out(faults: Sequence[Fault]) -> bool:
    """Whether the dataset has none of these faults any more without the clips that have them."""
    return ARCHIVE_WIDE.isdisjoint(one.type for one in faults)


def _read_dataset(source: Source, pairing: Pairing, params: IngestParams, work: Workspace) -> DatasetContents:
    """Read every caption and prepare every audio file, unless there are too many files to start with."""
    if pairing.num_audio > params.max_clips:
        return DatasetContents(faults=[fault("", "too_many_clips", count=pairing.num_audio, limit=params.max_clips)])
    work.phase("reading the captions")
    prompts = read_prompts(source, pairing, params)
    contents = DatasetContents(prompts=prompts.by_audio, faults=prompts.faults)
    _prepare_all(source, pairing.audio, params, work, contents)
    return contents


def _prepare_all(
    source: Source, members: Sequence[Member], params: IngestParams, work: Workspace, contents: DatasetContents
) -> None:
    """Prepare what is not prepared yet, equal bytes only once, and report progress after each clip."""
    by_digest: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        by_digest[str(member.digest)].append(member)
    jobs: list[RecordingJob] = []
    for digest, equals in by_digest.items():
        facts = stored_facts(work.shared, digest, params)
        if facts is None:
            jobs.append(
                RecordingJob(source=source.path, kind=source.kind, member=equals[0], shared=work.shared, params=params)
            )
        else:
            contents.add(equals, facts)
    _check_space(work.shared, [job.member for job in jobs], params)
    num_done = len(members) - sum(len(by_digest[str(job.member.digest)]) for job in jobs)
    num_bytes, bytes_total = 0, sum(job.member.num_bytes for job in jobs)
    work.progress(num_done, len(members), bytes_done=0, bytes_total=bytes_total)
    with closing(results(_largest_first(jobs), work.resources, work.should_stop)) as finished:
        for job, result in finished:
            equals = by_digest[str(job.member.digest)]
            contents.add(equals, result)
            num_done += len(equals)
            num_bytes += job.member.num_bytes
            work.progress(num_done, len(members), job.member.name, bytes_done=num_bytes, bytes_total=bytes_total)
    if num_done < len(members):
        raise Stopped(f"after preparing {num_done:,} of {pluralized(len(members), 'clip')}")


def _largest_first(jobs: Sequence[RecordingJob]) -> list[RecordingJob]:
    """The jobs by size, largest first, so that no worker starts a long clip when the others are done."""
    return sorted(jobs, key=lambda job: (-job.member.num_bytes, job.member.name))


def _check_space(shared: Path, members: list[Member], params: IngestParams) -> None:
    """Raise InsufficientDiskSpace if the prepared audio does not fit on the disk."""
    shared.mkdir(parents=True, exist_ok=True)
    num_bytes = estimated_bytes(members, params)
    check_space("this dataset", [SpaceNeed(what="prepared audio", folder=shared, flag="--store", num_bytes=num_bytes)])


def _check_packages(params: IngestParams) -> None:
    """Raise PackageMissing if the resampler asked for is not installed."""
    if params.resampler == "soxr" and find_spec(SOXR.module) is None:
        raise PackageMissing("--resampler soxr", SOXR.package)


def _usable_pairs(pairs: Sequence[Pair], contents: DatasetContents) -> list[Pair]:
    """Clips with prepared audio and a prompt, and without a fault."""
    bad = {fault.member for fault in contents.faults}
    usable = (contents.prepared.keys() & contents.prompts.keys()) - bad
    return [pair for pair in pairs if pair.audio.name in usable]


def _count_faults(
    num_usable: int, clips: Sequence[Pair], contents: DatasetContents, params: IngestParams
) -> Iterable[Fault]:
    """Faults of the dataset as a whole: too few clips, too many, or a part of a split clip named like another clip."""
    if num_usable < params.min_clips:
        yield fault("", "too_few_clips", count=num_usable, limit=params.min_clips)
    total = sum(len(contents.prepared[clip.audio.name]) for clip in clips)
    if total > params.max_clips:
        yield fault("", "too_many_clips", count=total, limit=params.max_clips)
    clip_ids = {clip.clip_id for clip in clips}
    for clip in clips:
        parts = {f"{clip.clip_id}#{number}" for number in range(2, len(contents.prepared[clip.audio.name]) + 1)}
        for name in sorted(parts & clip_ids):
            yield fault(clip.audio.name, "duplicate_name", others=f"{name} (which one of its parts would be called)")


def _report(work: Workspace, label: str, faults: Sequence[Fault]) -> None:
    """Print one line per type of fault or warning, with the files it is about."""
    for line in fault_lines(label, faults):
        work.say(line)


def _outcome(
    clips: Sequence[Pair],
    contents: DatasetContents,
    skipped: Sequence[Fault],
    warnings: Sequence[Fault],
    params: IngestParams,
    work: Workspace,
) -> Outcome:
    """Write the manifest; return the facts of the receipt."""
    lengths = [contents.prepared[clip.audio.name][0].num_samples_whole for clip in clips]
    window = dataset_window(lengths, params)
    rows = [
        manifest_row(clip.clip_id, contents.prompts[clip.audio.name], part, window, params)
        for clip in clips
        for part in contents.prepared[clip.audio.name]
        if not part.is_silent
    ]
    write_rows(work.directory / MANIFEST, rows, Clip)
    rate = params.sample_rate_hz
    facts: dict[str, Any] = {
        "num_clips": len(rows),
        "window_samples": window.num_samples,
        "window_frames": window.num_frames,
        "duration_seconds": window.num_samples / rate,
        "longest_clip_seconds": max(lengths) / rate,
        "total_seconds": sum(clip.num_samples for clip in rows) / rate,
        "audio_params": audio_params(params),
        "trigger_phrase": params.trigger_phrase,
        "skipped": [as_record(one) for one in skipped],
        "warnings": [as_record(one) for one in warnings],
    }
    return Outcome(facts=facts)
