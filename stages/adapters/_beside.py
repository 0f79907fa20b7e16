"""What a step on CUDA does beside its main chain of kernels, on streams of its own.

Most kernels of a short step are too small to fill the device. Norms of layers of different shapes are computed side by
side, there and back, and gradients of thin factors while the gradient goes on to the layer before; in a recording these
become branches. Memory taken on one stream and read on another is held until the streams have met: it would be given
away again before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_OTHERS = 2
NUM_BRANCHES = 2
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
    """Held until that is done."""
    made: Sequence[Tensor]


class Beside:
    """Streams of one device, and what their work still reads."""

    def __init__(self, device: torch.device) -> None:
        self._others = [torch.cuda.Stream(device) for _ in range(NUM_OTHERS)]
        self._gradients = torch.cuda.Stream(device)
        self._branches = [torch.cuda.Stream(device) for _ in range(NUM_BRANCHES)]
        """Of their own: what they make is given up while the chain goes back, and not taken again before they do."""
        self._open: list[torch.cuda.Stream] = []
        self._kept: list[Tensor] = []
        self._chain: torch.cuda.Stream | None = None
        self._away: set[torch.cuda.Stream] = set()
        """Streams that have left the chain and not met it again; only those may be waited for in a recording."""
        self._waiting: list[Work] = []
        self._since: dict[int, torch.cuda.Event] = {}
        """By the stream that it comes from: when what waits may begin."""
        self._held: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()
        self._made: dict[int, torch.cuda.Event] = {}
        """By the address of what is written: when it is there."""

    @contextmanager
    def shared(self) -> Iterator[Callable[[int], AbstractContextManager[object]]]:
        """Within, pieces of work are dealt out by number to the current stream and others, for which it then waits."""
        chain = self._chain = torch.cuda.current_stream()
        for stream in self._others:
            stream.wait_stream(chain)
        self._away.update(self._others)
        streams = [chain, *self._others]
        yield lambda number: torch.cuda.stream(streams[number % len(streams)])
        for stream in self._others:
            chain.wait_stream(stream)

    @contextmanager
    def branch(self, *read: Tensor) -> Iterator[None]:
        """Within, kernels run beside the chain, there and back, until `join`.

        Args:
            read: tensors of the chain that they read, on the way back too.
        """
        self._kept.extend(read)
        stream = self._branches[len(self._open) % NUM_BRANCHES]
        stream.wait_stream(torch.cuda.current_stream())
        self._away.add(stream)
        self._open.append(stream)
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """Let the current stream wait for the branches."""
        while self._open:
            torch.cuda.current_stream().wait_stream(self._open.pop())

    def later(self, work: Work) -> None:
        """Let kernels run beside the current stream, from where it is now."""
        current = torch.cuda.current_stream()
        self._waiting.append(work)
        self._since[current.cuda_stream] = current.record_event()
        if len(self._waiting) >= AT_ONCE:
            self._start()
        if current == self._chain and sum(one.nbytes for _, read in self._held for one in read) > MOST_HELD_BYTES:
            self._let_go(len(self._held) - 1)

    def _start(self) -> None:
        """What waits; together, since streams that meet cost the chain some time."""
        if not self._waiting:
            return
        for event in self._since.values():
            self._gradients.wait_event(event)
        self._away.add(self._gradients)
        with torch.cuda.stream(self._gradients):
            for work in self._waiting:
                work.run()
        done = self._gradients.record_event()
        self._held.append((done, [one for work in self._waiting for one in work.read]))
        self._made.update((one.data_ptr(), done) for work in self._waiting for one in work.made)
        self._waiting.clear()
        self._since.clear()

    def _let_go(self, count: int) -> None:
        """Of the oldest: memory may be taken again once the chain has waited."""
        events = [self._held.popleft()[0] for _ in range(count)]
        if events:
            torch.cuda.current_stream().wait_event(events[-1])

    def meet(self, gradients: Sequence[Tensor]) -> None:
        """Let the current stream wait for these, if they are made beside the chain."""
        self._start()
        for done in {self._made[one.data_ptr()] for one in gradients if one.data_ptr() in self._made}:
            torch.cuda.current_stream().wait_event(done)

    def end(self) -> None:
        """Let the current stream wait for everything, and hold nothing."""
        for stream in self._away:
            torch.cuda.current_stream().wait_stream(stream)
        self._away.clear()
        self._open.clear()
        self._kept.clear()
        self._waiting.clear()
        self._since.clear()
        self._held.clear()
        self._made.clear()


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
