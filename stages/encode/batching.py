"""Many clips through the autoencoder at once, while the next ones are read.

Which clips share a batch follows from the shard group alone, so a run that was stopped encodes what is left in the same
company; and a clip's latents depend on its company by rounding only, as silence follows every clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

MOST_FRAMES = 4096
"""Of a batch, padding included; what keeps a large device busy, within a few gigabytes."""
READERS = 4
"""Threads that read and decode; the decoder runs outside the interpreter's lock."""

Audio = Callable[[], np.ndarray]
EncodeMany = Callable[[Sequence[int], list[np.ndarray]], list[np.ndarray]]
"""(places of clips, their audio) to their (frames, channels)."""


def batches_of(num_frames: Sequence[int], most_frames: int = MOST_FRAMES) -> list[list[int]]:
    """Places of clips by batch, like with like, at most `most_frames` together; a longer clip is a batch of its own."""
    batches: list[list[int]] = []
    for place in sorted(range(len(num_frames)), key=lambda place: (num_frames[place], place)):
        if batches and (len(batches[-1]) + 1) * num_frames[place] <= most_frames:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def encoded_together(
    audios: Sequence[Audio], num_frames: Sequence[int], encode: EncodeMany, check_stop: Callable[[], None]
) -> Iterator[np.ndarray]:
    """Frames of every clip of a group, in the group's order.

    Args:
        check_stop: called before every batch; raises to stop.
    """
    batches = batches_of(num_frames)
    found: dict[int, np.ndarray] = {}
    with ThreadPoolExecutor(READERS) as readers:
        ahead = _read(readers, audios, batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            check_stop()
            now, ahead = ahead, _read(readers, audios, following)
            found.update(zip(batch, encode(batch, [future.result() for future in now]), strict=True))
    return iter([found[place] for place in range(len(audios))])


def _read(readers: ThreadPoolExecutor, audios: Sequence[Audio], batch: Sequence[int]) -> list[Future[np.ndarray]]:
    return [readers.submit(audios[place]) for place in batch]
