"""What is done streams the chain: who waits for whom, on streams that only remember what they were told."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from stages.adapters.ops import side_streams
from stages.adapters.ops.side_streams import NUM_PRIORITY_STREAMS, WORK_PER_LAUNCH, DeferredWork, SideStreams
from stages.adapters.stacked.layer_group import StepPhase


class Stream:
    """Knows what comes before its next kernel: its own kernels, and those of streams and events it has waited for."""

    def __init__(self, *_: object, **__: object) -> None:
        self.before: set[str] = set()

    def run(self, kernel: str) -> None:
        self.before.add(kernel)

    def wait_stream(self, other: Stream) -> None:
        self.before |= other.before

    def record_event(self) -> frozenset[str]:
        return frozenset(self.before)

    def wait_event(self, event: frozenset[str]) -> None:
        self.before |= event


@pytest.fixture
def chain(monkeypatch) -> Stream:
    """The stream that is current in the beginning."""
    current = [Stream()]

    @contextmanager
    def stream(one: Stream):
        current.append(one)
        yield
        current.pop()

    cuda = SimpleNamespace(Stream=Stream, stream=stream, current_stream=lambda: current[-1])
    monkeypatch.setattr(side_streams, "torch", SimpleNamespace(cuda=cuda))
    return current[0]


def now() -> Stream:
    return side_streams.torch.cuda.current_stream()


def work(name: str, made: torch.Tensor, *, large: bool = False) -> DeferredWork:
    return DeferredWork(run=lambda: now().run(name), reads=[], writes=[made], large=large)


def begun(streams: SideStreams) -> None:
    """Weights of every part given out, each to streams of its kind."""
    streams.fork()
    for phase, numbers in (
        (StepPhase.BEFORE_BLOCKS, (0, 1, 2)),
        (StepPhase.BATCHED_BLOCKS, (3, 4)),
        (StepPhase.IN_BLOCKS, (3, 4, 5)),
    ):
        for number in numbers:
            with streams.stream(number):
                now().run(f"{phase.name} {number}")
        streams.mark_computed(phase)


def test_each_part_waits_for_its_own_weights_and_for_nothing_of_a_later_one(chain):
    streams = SideStreams(torch.device("cpu"))
    chain.run("batch")
    begun(streams)
    assert chain.before == {"batch", "BEFORE_BLOCKS 0"}, "nothing is waited for before it is needed"
    before = {"batch", *(f"BEFORE_BLOCKS {number}" for number in range(NUM_PRIORITY_STREAMS + 1))}
    streams.wait_for_phase(StepPhase.BEFORE_BLOCKS)
    assert chain.before == before
    streams.wait_for_phase(StepPhase.BATCHED_BLOCKS)
    assert chain.before == before | {"BATCHED_BLOCKS 3", "BATCHED_BLOCKS 4"}
    streams.wait_for_phase(StepPhase.IN_BLOCKS)
    assert chain.before == before | {
        "BATCHED_BLOCKS 3",
        "BATCHED_BLOCKS 4",
        "IN_BLOCKS 3",
        "IN_BLOCKS 4",
        "IN_BLOCKS 5",
    }


def test_a_part_is_waited_for_once_and_the_end_waits_for_what_nobody_came_to(chain):
    streams = SideStreams(torch.device("cpu"))
    begun(streams)
    streams.wait_for_phase(StepPhase.BEFORE_BLOCKS)
    seen = set(chain.before)
    streams.wait_for_phase(StepPhase.BEFORE_BLOCKS)
    assert chain.before == seen and "IN_BLOCKS 5" not in seen
    streams.join()
    assert {"BATCHED_BLOCKS 3", "IN_BLOCKS 3", "IN_BLOCKS 4", "IN_BLOCKS 5"} <= chain.before


def test_what_a_stopped_step_left_is_waited_for_by_no_later_one(chain):
    streams, made = SideStreams(torch.device("cpu")), torch.zeros(1)
    begun(streams)
    streams.defer(work("gradient", made))
    chain.before.clear()
    for stream in (*streams._priority, *streams._block):
        stream.before.clear()
    streams.fork()
    for phase in StepPhase:
        streams.wait_for_phase(phase)
    streams.wait_for_gradients([made])
    streams.join()
    assert not chain.before


def test_a_gradient_begins_from_where_it_was_asked_for_and_its_reader_waits_for_it(chain):
    streams, made = SideStreams(torch.device("cpu")), [torch.zeros(1) for _ in range(WORK_PER_LAUNCH + 1)]
    for number, one in enumerate(made):
        chain.run(f"block {number}")
        streams.defer(work(f"gradient {number}", one))
    assert not any(kernel.startswith("gradient") for kernel in chain.before)
    chain.run("much later")
    streams.wait_for_gradients([made[0]])
    assert {"gradient 0", "gradient 5"} <= chain.before and "gradient 6" not in chain.before
    streams.wait_for_gradients([made[-1]])
    assert "gradient 6" in chain.before
    assert "much later" not in streams._gradients.before


def test_what_waits_begins_before_a_large_gradient_whose_kernels_it_would_wait_for(chain):
    streams, (small, large) = SideStreams(torch.device("cpu")), (torch.zeros(1), torch.zeros(1))
    chain.run("last of the blocks")
    streams.defer(work("small", small))
    chain.run("long kernel")
    streams.defer(work("large", large, large=True))
    chain.before.clear()
    streams.wait_for_gradients([small])
    assert chain.before == {"last of the blocks", "small"}
    streams.wait_for_gradients([large])
    assert "large" in chain.before
