"""CUDA streams beside the main one: weights are computed ahead on them, gradients of thin factors alongside.

Most kernels of a short step are too small to fill the device. Norms of layers of different shapes are computed on
several streams, those of the blocks while the main stream is still at what comes before them, in the forward and in the
backward pass; and gradients of thin factors while the main stream goes on to the layer before. In a CUDA graph these
become branches. The caching allocator knows nothing of that: memory allocated on one stream and read on another is held
here until the streams have joined, or it would be given away before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_PRIORITY_STREAMS, NUM_BLOCK_STREAMS = 2, 3
"""Streams for weights that are used before the blocks, which the main stream needs first, and for all others."""
HIGH_PRIORITY = -1
"""CUDA stream priority; lower numbers run first, and 0 is the default."""
WORK_PER_LAUNCH = 6
"""Layers whose gradients are launched together: those of one block."""
MAX_HELD_BYTES = 512 << 20
"""Bytes of tensors that unfinished side work may hold; beyond, the main stream waits for all but the newest work."""

_IN_USE: dict[str, SideStreams | None] = {"now": None}
"""One for all threads: autograd runs the backward pass in a thread of its own."""


@dataclass(frozen=True, kw_only=True)
class DeferredWork:
    """Kernels to launch on a side stream, which read tensors and write into tensors allocated beforehand."""

    run: Callable[[], None]
    reads: Sequence[Tensor]
    writes: Sequence[Tensor]
    """Reads and writes are kept alive until the work is done."""
    large: bool = False
    """Work on the layers of all blocks: launched at once, and work deferred before it does not wait for it."""


class SideStreams:
    """The side streams of one device, and the tensors that their unfinished work uses."""

    def __init__(self, device: torch.device) -> None:
        self._priority = [torch.cuda.Stream(device, priority=HIGH_PRIORITY) for _ in range(NUM_PRIORITY_STREAMS)]
        self._block = [torch.cuda.Stream(device) for _ in range(NUM_BLOCK_STREAMS)]
        self._gradients = torch.cuda.Stream(device)
        self._forked: set[torch.cuda.Stream] = set()
        """Streams forked from the main stream and not joined again; a graph capture may wait for these only."""
        self._deferred: list[DeferredWork] = []
        self._deferred_after: torch.cuda.Event | None = None
        """Event on the main stream after which the deferred work may start."""
        self._held: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()
        """Tensors in use, oldest first, each with the event that ends their use."""
        self._written: dict[int, torch.cuda.Event] = {}
        """The event after which a tensor that work writes may be read, by the tensor's address."""
        self._computed: dict[int, list[torch.cuda.Event]] = {}
        """Events after which the weights of a phase may be read, by phase."""

    def fork(self) -> None:
        """Let the streams for weights continue from where the current stream is."""
        self._reset()  # a step that failed may have left something
        main = torch.cuda.current_stream()
        for stream in (*self._priority, *self._block):
            stream.wait_stream(main)
            self._forked.add(stream)

    def stream(self, number: int) -> AbstractContextManager[object]:
        """Context in which work goes to this stream: 0 is the current one, then high-priority ones, then the others."""
        return torch.cuda.stream([*self._priority, *self._block][number - 1]) if number else nullcontext()

    def mark_computed(self, phase: int) -> None:
        """All work that computes the weights of this phase has been launched."""
        self._computed[phase] = [stream.record_event() for stream in (*self._priority, *self._block)]

    def wait_for_phase(self, phase: int) -> None:
        """Let the current stream wait for the weights of this phase, once per step."""
        for done in self._computed.pop(phase, ()):
            torch.cuda.current_stream().wait_event(done)

    def defer(self, work: DeferredWork) -> None:
        """Let work run on the side stream for gradients, after what the current stream has been given so far."""
        if work.large:
            self._launch()
        self._deferred.append(work)
        self._deferred_after = torch.cuda.current_stream().record_event()
        if work.large or len(self._deferred) >= WORK_PER_LAUNCH:
            self._launch()
        if sum(one.nbytes for _, tensors in self._held for one in tensors) > MAX_HELD_BYTES:
            self._release(len(self._held) - 1)

    def _launch(self) -> None:
        """Launch the deferred work; several at a time, since every fork costs the main stream some time."""
        if self._deferred_after is None:
            return
        self._gradients.wait_event(self._deferred_after)
        self._forked.add(self._gradients)
        with torch.cuda.stream(self._gradients):
            for work in self._deferred:
                work.run()
        done = self._gradients.record_event()
        self._held.append((done, [one for work in self._deferred for one in (*work.reads, *work.writes)]))
        self._written.update((one.data_ptr(), done) for work in self._deferred for one in work.writes)
        self._deferred.clear()
        self._deferred_after = None

    def _release(self, count: int) -> None:
        """Let the current stream wait for the oldest work, and drop its tensors: their memory may then be reused."""
        events = [self._held.popleft()[0] for _ in range(count)]
        if events:
            torch.cuda.current_stream().wait_event(events[-1])

    def wait_for_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Let the current stream wait for those of these gradients that are computed on the side stream.

        They are recognised by address: autograd must not copy one before, or it reads it before it is written.
        """
        self._launch()
        for done in {self._written[one.data_ptr()] for one in gradients if one.data_ptr() in self._written}:
            torch.cuda.current_stream().wait_event(done)

    def join(self) -> None:
        """Let the current stream wait for all side streams, and hold no tensors."""
        for stream in self._forked:
            torch.cuda.current_stream().wait_stream(stream)
        self._reset()

    def abandon(self) -> None:
        """Hold no tensors after a failure. In a graph capture the streams are joined, or ending it would fail again."""
        try:
            if torch.cuda.is_current_stream_capturing():
                for stream in self._forked:
                    with suppress(RuntimeError):
                        torch.cuda.current_stream().wait_stream(stream)
            else:
                torch.cuda.synchronize()
        finally:
            self._reset()

    def _reset(self) -> None:
        self._forked.clear()
        self._deferred.clear()
        self._deferred_after = None
        self._held.clear()
        self._written.clear()
        self._computed.clear()


@contextmanager
def use_side_streams(streams: SideStreams | None) -> Iterator[None]:
    """Context in which gradients of joined products are computed on these streams; None: on the current one."""
    before, _IN_USE["now"] = _IN_USE["now"], streams
    try:
        yield
    finally:
        _IN_USE["now"] = before


def defer_or_run(work: DeferredWork) -> None:
    """Defer the work to the side streams in use, or run it now where there are none."""
    streams = _IN_USE["now"]
    if streams is None:
        work.run()
    else:
        streams.defer(work)


def wait_for_gradients(gradients: Sequence[Tensor]) -> None:
    """Let the current stream wait for these gradients, where side streams are in use."""
    streams = _IN_USE["now"]
    if streams is not None:
        streams.wait_for_gradients(gradients)
