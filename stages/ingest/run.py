"""A dataset in, one row per clip and prepared audio out; every fault of every file found before anything is refused."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cache.manifest import write_rows
from stages.contract import Inputs, Member, Outcome, Source, Workspace
from stages.errors import DatasetFaults, Fault, SpaceShort, Stopped
from stages.ingest.archive import forget_open_archives, read_member
from stages.ingest.captions import Pair, Pairing, pair, prompt_of
from stages.ingest.faults import ARCHIVE_WIDE, Unfit, as_record, fault, in_order, note
from stages.ingest.limits import within
from stages.ingest.preparing import Job, Prepared, check_length, kept_facts, needed_bytes, prepared_place
from stages.ingest.stage import IngestParams, audio_params
from stages.ingest.window import Window, row, window
from stages.ingest.workers import results
from stages.records import Clip

MANIFEST = "manifest.parquet"


@dataclass(kw_only=True)
class Found:
    """What reading the files led to, by member name."""

    prompts: dict[str, str] = field(default_factory=dict)
    prepared: dict[str, Prepared] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def add(self, members: Sequence[Member], result: Prepared | Fault, params: IngestParams) -> None:
        """Keep what came of one audio file, for every member that holds the same bytes."""
        for member in members:
            if isinstance(result, Fault):
                self.faults.append(replace(result, member=member.name))
                continue
            self.prepared[member.name] = result
            try:
                check_length(result.num_samples_whole, params)  # kept facts may stem from a shorter latent frame
            except Unfit as unfit:
                self.faults.append(unfit.fault(member.name))


def ingest(inputs: Inputs, params: IngestParams, work: Workspace) -> Outcome:
    """Pair, check and prepare every clip of a dataset.

    A clip whose prepared audio is whole in the shared folder is not decoded again, whichever run made it. Prepared
    audio depends on the source bytes and `audio_params` alone, never on captions, the window or other clips.

    Raises:
        DatasetFaults: every fault of every file; with skip_bad only those of the archive itself.
        Stopped: asked to; finished clips are kept.
        SpaceShort, StageError: the disk or a worker failed.
    """
    source = inputs.source
    assert source is not None, "ingest is planned with a source"
    pairing = pair(within(source.members, params.limits))
    try:
        found = _look(source, pairing, params, work)
    finally:
        forget_open_archives()
    clips = _usable(pairing.pairs, found)
    usable = len(clips) if params.skip_bad else pairing.num_audio
    faults = in_order([*pairing.faults, *found.faults, *_too_few(usable, params)])
    if faults and not (params.skip_bad and ARCHIVE_WIDE.isdisjoint(one.type for one in faults)):
        raise DatasetFaults(faults)
    notes = in_order([*pairing.notes, *_notes(found.prepared, params)])
    _say(work, "left out", faults)
    _say(work, "noted", notes)
    return _outcome(clips, found, faults, notes, params, work)


def _look(source: Source, pairing: Pairing, params: IngestParams, work: Workspace) -> Found:
    """Read every caption and prepare every audio file, unless there are too many to begin."""
    if pairing.num_audio > params.max_clips:
        return Found(faults=[fault("", "too_many_clips", count=pairing.num_audio, limit=params.max_clips)])
    found = Found()
    for member in pairing.captions:
        try:
            found.prompts[member.name] = prompt_of(read_member(source.path, source.kind, member), params.trigger_phrase)
        except Unfit as unfit:
            found.faults.append(unfit.fault(member.name))
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
    with closing(results(_largest_first(jobs), work.resources, work.should_stop)) as finished:
        for job, result in finished:
            ones = same[str(job.member.digest)]
            found.add(ones, result, params)
            num_done += len(ones)
            work.progress(num_done, len(members), job.member.name)
    if num_done < len(members):
        raise Stopped(f"after preparing {num_done} of {len(members)} clips")


def _largest_first(jobs: Sequence[Job]) -> list[Job]:
    """So that no worker is left alone with a long clip at the end."""
    return sorted(jobs, key=lambda job: (-job.member.num_bytes, job.member.name))


def _check_space(shared: Path, members: list[Member], params: IngestParams) -> None:
    """Refuse to begin what the disk cannot hold."""
    shared.mkdir(parents=True, exist_ok=True)
    needed, free = needed_bytes(members, params), shutil.disk_usage(shared).free
    if needed > free:
        raise SpaceShort(shared, needed, free)


def _usable(pairs: Sequence[Pair], found: Found) -> list[Pair]:
    """Clips whose audio is prepared and whose caption is read, neither with a fault."""
    bad = {one.member for one in found.faults}
    fit = (found.prepared.keys() | found.prompts.keys()) - bad
    return [one for one in pairs if {one.audio.name, one.caption.name} <= fit]


def _too_few(count: int, params: IngestParams) -> Iterable[Fault]:
    if count < params.min_clips:
        yield fault("", "too_few_clips", count=count, limit=params.min_clips)


def _notes(prepared: Mapping[str, Prepared], params: IngestParams) -> Iterable[Fault]:
    """What a user should know about clips that are used."""
    for name, facts in prepared.items():
        if facts.num_channels > 2:
            yield note(name, "channels_dropped", count=facts.num_channels)
        if facts.num_samples_whole > facts.num_samples:
            rate = params.sample_rate_hz
            yield note(name, "cropped_to_native", seconds=facts.num_samples_whole / rate, kept=facts.num_samples / rate)
        if facts.num_clamped:
            yield note(name, "clamped", count=facts.num_clamped, peak=facts.peak)
        if not facts.length_known:
            yield note(name, "length_unknown")


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
    lengths = [found.prepared[one.audio.name].num_samples_whole for one in clips]
    against = window(lengths, params)
    rows = [_row(one, found, against, params) for one in clips]
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
        "skipped": [as_record(one) for one in skipped],
        "warnings": [as_record(one) for one in notes],
    }
    return Outcome(facts=facts)


def _row(one: Pair, found: Found, against: Window, params: IngestParams) -> Clip:
    prepared, prompt = found.prepared[one.audio.name], found.prompts[one.caption.name]
    return row(one, prompt, prepared, prepared_place(prepared.digest, params), against, params)
