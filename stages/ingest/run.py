"""A dataset in, one row per clip and prepared audio out; every fault of every file found before anything is refused."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cache.manifest import write_rows
from stages.contract import Inputs, Member, Outcome, Source, Workspace
from stages.errors import DatasetFaults, Fault, InsufficientDiskSpace, PackageMissing, Stopped
from stages.ingest.audio.mpeg_decoder import end_idle_decoders
from stages.ingest.captions.pairing import Pair, Pairing, pair
from stages.ingest.captions.prompts import Prompt, read_prompts, unused_captions
from stages.ingest.clip_warnings import prepared_notes
from stages.ingest.eta import Pace
from stages.ingest.faults import ARCHIVE_WIDE, Unfit, as_record, fault, in_order
from stages.ingest.prepare_clip import Job, Prepared, check_length, kept_facts, needed_bytes
from stages.ingest.source.archive import forget_open_archives
from stages.ingest.source.limits import within
from stages.ingest.stage import SOXR, IngestParams, audio_params
from stages.ingest.window import row, window
from stages.ingest.workers import results
from stages.plural import pluralized
from stages.records import Clip

MANIFEST = "manifest.parquet"


@dataclass(kw_only=True)
class Found:
    """What reading the files led to, by member name."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    prepared: dict[str, tuple[Prepared, ...]] = field(default_factory=dict)
    """The windows of each audio file; one, unless long recordings are split."""
    faults: list[Fault] = field(default_factory=list)

    def add(self, members: Sequence[Member], result: tuple[Prepared, ...] | Fault, params: IngestParams) -> None:
        """Keep what came of one audio file, for every member that holds the same bytes."""
        for member in members:
            if isinstance(result, Fault):
                self.faults.append(replace(result, member=member.name))
                continue
            self.prepared[member.name] = result
            try:
                check_length(result[0].num_samples_whole, params)  # kept facts may stem from a shorter latent frame
            except Unfit as unfit:
                self.faults.append(unfit.fault(member.name))


def ingest(inputs: Inputs, params: IngestParams, work: Workspace) -> Outcome:
    """Pair, check and prepare every clip of a dataset.

    A clip whose prepared audio is whole in the shared folder is not decoded again, whichever run made it. Prepared
    audio depends on the source bytes and `audio_params` alone, never on captions, the window or other clips.

    Raises:
        DatasetFaults: every fault of every file; with skip_bad only those of the archive itself.
        Stopped: asked to; finished clips are kept.
        InsufficientDiskSpace, StageError: the disk or a worker failed.
    """
    source = inputs.source
    assert source is not None, "ingest is planned with a source"
    _check_packages(params)
    pairing = pair(within(source.members, params.limits), templated=params.caption_template is not None)
    try:
        found = _look(source, pairing, params, work)
    finally:
        forget_open_archives()
        end_idle_decoders()
    clips = _usable(pairing.pairs, found)
    usable = len(clips) if params.skip_bad else pairing.num_audio
    faults = in_order([*pairing.faults, *found.faults, *_counted(usable, clips, found, params)])
    if faults and not (params.skip_bad and ARCHIVE_WIDE.isdisjoint(one.type for one in faults)):
        raise DatasetFaults(faults)
    unused = unused_captions(pairing.pairs, params)
    notes = in_order([*pairing.notes, *unused, *prepared_notes(found.prepared, params)])
    _say(work, "left out", faults)
    _say(work, "noted", notes)
    return _outcome(clips, found, faults, notes, params, work)


def _look(source: Source, pairing: Pairing, params: IngestParams, work: Workspace) -> Found:
    """Read every caption and prepare every audio file, unless there are too many to begin."""
    if pairing.num_audio > params.max_clips:
        return Found(faults=[fault("", "too_many_clips", count=pairing.num_audio, limit=params.max_clips)])
    prompts = read_prompts(source, pairing, params)
    found = Found(prompts=prompts.of_audio, faults=prompts.faults)
    _prepare_all(source, pairing.audio, params, work, found)
    return found


def _prepare_all(
    source: Source, members: Sequence[Member], params: IngestParams, work: Workspace, found: Found
) -> None:
    """Prepare what is not prepared yet, the same bytes once, and report each clip as it is done."""
    same: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        same[str(member.digest)].append(member)
    jobs: list[Job] = []
    for digest, ones in same.items():
        facts = kept_facts(work.shared, digest, params)
        if facts is None:
            jobs.append(Job(source=source.path, kind=source.kind, member=ones[0], shared=work.shared, params=params))
        else:
            found.add(ones, facts, params)
    _check_space(work.shared, [job.member for job in jobs], params)
    num_done = len(members) - sum(len(same[str(job.member.digest)]) for job in jobs)
    work.progress(num_done, len(members))
    pace = Pace(sum(job.member.num_bytes for job in jobs))
    with closing(results(_largest_first(jobs), work.resources, work.should_stop)) as finished:
        for job, result in finished:
            ones = same[str(job.member.digest)]
            found.add(ones, result, params)
            num_done += len(ones)
            work.progress(num_done, len(members), pace.note(job.member.name, job.member.num_bytes))
    if num_done < len(members):
        raise Stopped(f"after preparing {num_done:,} of {pluralized(len(members), 'clip')}")


def _largest_first(jobs: Sequence[Job]) -> list[Job]:
    """So that no worker is left alone with a long clip at the end."""
    return sorted(jobs, key=lambda job: (-job.member.num_bytes, job.member.name))


def _check_space(shared: Path, members: list[Member], params: IngestParams) -> None:
    """Refuse to begin what the disk cannot hold."""
    shared.mkdir(parents=True, exist_ok=True)
    needed, free = needed_bytes(members, params), shutil.disk_usage(shared).free
    if needed > free:
        raise InsufficientDiskSpace(shared, needed, free)


def _check_packages(params: IngestParams) -> None:
    """Check that the resampler's package is installed. Raises: PackageMissing."""
    if params.resampler == "soxr" and find_spec(SOXR.module) is None:
        raise PackageMissing("--resampler soxr", SOXR.package)


def _usable(pairs: Sequence[Pair], found: Found) -> list[Pair]:
    """Clips whose audio is prepared and whose prompt is made, neither with a fault."""
    bad = {one.member for one in found.faults}
    fit = (found.prepared.keys() & found.prompts.keys()) - bad
    return [one for one in pairs if one.audio.name in fit]


def _counted(usable: int, clips: Sequence[Pair], found: Found, params: IngestParams) -> Iterable[Fault]:
    """Too few clips, too many once long ones are split, or two that would have one name."""
    if usable < params.min_clips:
        yield fault("", "too_few_clips", count=usable, limit=params.min_clips)
    total = sum(len(found.prepared[one.audio.name]) for one in clips)
    if total > params.max_clips:
        yield fault("", "too_many_clips", count=total, limit=params.max_clips)
    plain = {one.clip_id for one in clips}
    for one in clips:
        windows = {f"{one.clip_id}#{number}" for number in range(2, len(found.prepared[one.audio.name]) + 1)}
        for name in sorted(windows & plain):
            yield fault(one.audio.name, "duplicate_name", others=f"its part {name} would have: {name}")


def _say(work: Workspace, what: str, found: Sequence[Fault]) -> None:
    """One line per kind, with the files it concerns."""
    by_type: dict[str, list[Fault]] = defaultdict(list)
    for one in found:
        by_type[one.type].append(one)
    for type, ones in sorted(by_type.items()):
        if len(ones) == 1:
            work.say(f"{what}: {ones[0].member}: {ones[0].msg}")
            continue
        shown = ", ".join(one.member for one in ones[:5]) + (f" and {len(ones) - 5} more" if len(ones) > 5 else "")
        work.say(f"{what}: {len(ones)} files, {type.replace('_', ' ')}: {shown}")


def _outcome(
    clips: Sequence[Pair],
    found: Found,
    skipped: Sequence[Fault],
    notes: Sequence[Fault],
    params: IngestParams,
    work: Workspace,
) -> Outcome:
    """Write the manifest and sum up."""
    lengths = [found.prepared[one.audio.name][0].num_samples_whole for one in clips]
    against = window(lengths, params)
    rows = [
        row(one.clip_id, found.prompts[one.audio.name], part, against, params)
        for one in clips
        for part in found.prepared[one.audio.name]
        if not part.is_silent
    ]
    write_rows(work.directory / MANIFEST, rows, Clip)
    rate = params.sample_rate_hz
    facts: dict[str, Any] = {
        "num_clips": len(rows),
        "window_samples": against.num_samples,
        "window_frames": against.num_frames,
        "duration_seconds": against.num_samples / rate,
        "longest_clip_seconds": max(lengths) / rate,
        "total_seconds": sum(clip.num_samples for clip in rows) / rate,
        "audio_params": audio_params(params),
        "trigger_phrase": params.trigger_phrase,
        "skipped": [as_record(one) for one in skipped],
        "warnings": [as_record(one) for one in notes],
    }
    return Outcome(facts=facts)
