"""What a step on CUDA does beside its main chain of kernels, on streams of its own.

Most kernels of a short step are too small to fill the device. Norms of layers of different shapes are computed side by
side, those of the blocks while the chain is still at what comes before them, there and back; and gradients of thin
factors while the gradient goes on to the layer before. In a recording these become branches. Memory taken on one stream
and read on another is held until the streams have met: it would be given away again before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_FIRST, NUM_LATER = 2, 3
"""Streams beside the chain's own: for weights that it needs first, and for those of the blocks."""
URGENT = -1
"""Priority of a stream; 0 is the usual one, and comes after it."""
AT_ONCE = 6
"""Layers whose gradients are begun together: a block's."""
MOST_HELD_BYTES = 512 << 20
"""Of tensors that gradients beside the chain still read; beyond, the chain waits for all but the newest."""

_IN_USE: dict[str, Beside | None] = {"now": None}
"""One for all threads: the backward pass runs in one of its own."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Kernels that write to tensors which are there already, and read others."""

    run: Callable[[], None]
    read: Sequence[Tensor]
    made: Sequence[Tensor]
    """Both are held until that is done."""
    large: bool = False
    """Of the layers of all blocks: enough by itself, and nothing that came before should wait for it."""


class Beside:
    """Streams of one device, and what their work still reads."""

    def __init__(self, device: torch.device) -> None:
        self._first = [torch.cuda.Stream(device, priority=URGENT) for _ in range(NUM_FIRST)]
        self._later = [torch.cuda.Stream(device) for _ in range(NUM_LATER)]
        self._gradients = torch.cuda.Stream(device)
        self._away: set[torch.cuda.Stream] = set()
        """Streams that have left the chain and not met it again; only those may be waited for in a recording."""
        self._waiting: list[Work] = []
        self._since: torch.cuda.Event | None = None
        """When what waits may begin."""
        self._held: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()
        self._made: dict[int, torch.cuda.Event] = {}
        """By the address of what is written: when it is there."""
        self._reached: dict[int, list[torch.cuda.Event]] = {}
        """By the number of a part of the step: when what was computed for it is there."""

    def begin(self) -> None:
        """Let the others go on from where the current stream is."""
        self._forget()  # what a step left that was stopped before its end
        chain = torch.cuda.current_stream()
        for stream in (*self._first, *self._later):
            stream.wait_stream(chain)
            self._away.add(stream)

    def on(self, number: int) -> AbstractContextManager[object]:
        """Within, work goes to one of the others: from 1 on the first, then the later ones; with 0 to the current."""
        return torch.cuda.stream([*self._first, *self._later][number - 1]) if number else nullcontext()

    def mark(self, part: int) -> None:
        """What a part of the step needs has been given to the streams."""
        self._reached[part] = [stream.record_event() for stream in (*self._first, *self._later)]

    def reach(self, part: int) -> None:
        """Let the current stream wait for what this part needs, once."""
        for done in self._reached.pop(part, ()):
            torch.cuda.current_stream().wait_event(done)

    def later(self, work: Work) -> None:
        """Let kernels run beside the current stream, from where it is now."""
        if work.large:
            self._start()
        self._waiting.append(work)
        self._since = torch.cuda.current_stream().record_event()
        if work.large or len(self._waiting) >= AT_ONCE:
            self._start()
        if sum(one.nbytes for _, read in self._held for one in read) > MOST_HELD_BYTES:
            self._let_go(len(self._held) - 1)

    def _start(self) -> None:
        """What waits; together, since streams that meet cost the chain some time."""
        if self._since is None:
            return
        self._gradients.wait_event(self._since)
        self._away.add(self._gradients)
        with torch.cuda.stream(self._gradients):
            for work in self._waiting:
                work.run()
        done = self._gradients.record_event()
        self._held.append((done, [one for work in self._waiting for one in (*work.read, *work.made)]))
        self._made.update((one.data_ptr(), done) for work in self._waiting for one in work.made)
        self._waiting.clear()
        self._since = None

    def _let_go(self, count: int) -> None:
        """Of the oldest: memory may be taken again once the current stream has waited."""
        events = [self._held.popleft()[0] for _ in range(count)]
        if events:
            torch.cuda.current_stream().wait_event(events[-1])

    def meet(self, gradients: Sequence[Tensor]) -> None:
        """Let the current stream wait for these, if they are made beside the chain.

        They are known by their addresses: nothing may copy one on its way here, or it is read before it is there.
        """
        self._start()
        for done in {self._made[one.data_ptr()] for one in gradients if one.data_ptr() in self._made}:
            torch.cuda.current_stream().wait_event(done)

    def end(self) -> None:
        """Let the current stream wait for everything, and hold nothing."""
        for stream in self._away:
            torch.cuda.current_stream().wait_stream(stream)
        self._forget()

    def give_up(self) -> None:
        """Hold nothing after a failure. A recording must be left with its streams joined, or it would fail anew."""
        try:
            if torch.cuda.is_current_stream_capturing():
                for stream in self._away:
                    with suppress(RuntimeError):
                        torch.cuda.current_stream().wait_stream(stream)
            else:
                torch.cuda.synchronize()
        finally:
            self._forget()

    def _forget(self) -> None:
        self._away.clear()
        self._waiting.clear()
        self._since = None
        self._held.clear()
        self._made.clear()
        self._reached.clear()


@contextmanager
def used(beside: Beside | None) -> Iterator[None]:
    """Within, gradients of joined products are computed beside the chain; with None, in it."""
    before, _IN_USE["now"] = _IN_USE["now"], beside
    try:
        yield
    finally:
        _IN_USE["now"] = before


def later(work: Work) -> None:
    """`Beside.later` where it is in use; otherwise at once."""
    beside = _IN_USE["now"]
    if beside is None:
        work.run()
    else:
        beside.later(work)


def meet(gradients: Sequence[Tensor]) -> None:
    """`Beside.meet` where it is in use."""
    beside = _IN_USE["now"]
    if beside is not None:
        beside.meet(gradients)
