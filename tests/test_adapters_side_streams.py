"""Side streams: what waits for what, on fake streams that record the order of kernels."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from stages.adapters.ops import side_streams
from stages.adapters.ops.side_streams import NUM_PRIORITY_STREAMS, WORK_PER_LAUNCH, DeferredWork, SideStreams
from stages.adapters.stacked.layer_group import StepPhase


class Stream:
    """Knows what precedes its next kernel: its own kernels, and those of streams and events it has waited for."""

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
def main(monkeypatch) -> Stream:
    """The main stream, current at first."""
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


def launch_weights(streams: SideStreams) -> None:
    """Launch the weights of every phase, each on streams of its kind."""
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


def test_each_phase_waits_for_its_own_weights_and_none_of_a_later_one(main):
    streams = SideStreams(torch.device("cpu"))
    main.run("batch")
    launch_weights(streams)
    assert main.before == {"batch", "BEFORE_BLOCKS 0"}, "nothing is waited for before it is needed"
    before = {"batch", *(f"BEFORE_BLOCKS {number}" for number in range(NUM_PRIORITY_STREAMS + 1))}
    streams.wait_for_phase(StepPhase.BEFORE_BLOCKS)
    assert main.before == before
    streams.wait_for_phase(StepPhase.BATCHED_BLOCKS)
    assert main.before == before | {"BATCHED_BLOCKS 3", "BATCHED_BLOCKS 4"}
    streams.wait_for_phase(StepPhase.IN_BLOCKS)
    assert main.before == before | {
        "BATCHED_BLOCKS 3",
        "BATCHED_BLOCKS 4",
        "IN_BLOCKS 3",
        "IN_BLOCKS 4",
        "IN_BLOCKS 5",
    }


def test_a_phase_is_waited_for_once_and_join_waits_for_the_rest(main):
    streams = SideStreams(torch.device("cpu"))
    launch_weights(streams)
    streams.wait_for_phase(StepPhase.BEFORE_BLOCKS)
    seen = set(main.before)
    streams.wait_for_phase(StepPhase.BEFORE_BLOCKS)
    assert main.before == seen and "IN_BLOCKS 5" not in seen
    streams.join()
    assert {"BATCHED_BLOCKS 3", "IN_BLOCKS 3", "IN_BLOCKS 4", "IN_BLOCKS 5"} <= main.before


def test_nothing_left_by_a_failed_step_is_waited_for_later(main):
    streams, made = SideStreams(torch.device("cpu")), torch.zeros(1)
    launch_weights(streams)
    streams.defer(work("gradient", made))
    main.before.clear()
    for stream in (*streams._priority, *streams._block):
        stream.before.clear()
    streams.fork()
    for phase in StepPhase:
        streams.wait_for_phase(phase)
    streams.wait_for_gradients([made])
    streams.join()
    assert not main.before


def test_a_gradient_starts_where_it_was_deferred_and_its_reader_waits_for_it(main):
    streams, made = SideStreams(torch.device("cpu")), [torch.zeros(1) for _ in range(WORK_PER_LAUNCH + 1)]
    for number, one in enumerate(made):
        main.run(f"block {number}")
        streams.defer(work(f"gradient {number}", one))
    assert not any(kernel.startswith("gradient") for kernel in main.before)
    main.run("much later")
    streams.wait_for_gradients([made[0]])
    assert {"gradient 0", "gradient 5"} <= main.before and "gradient 6" not in main.before
    streams.wait_for_gradients([made[-1]])
    assert "gradient 6" in main.before
    assert "much later" not in streams._gradients.before


def test_deferred_work_is_launched_before_a_large_gradient_and_does_not_wait_for_it(main):
    streams, (small, large) = SideStreams(torch.device("cpu")), (torch.zeros(1), torch.zeros(1))
    main.run("last of the blocks")
    streams.defer(work("small", small))
    main.run("long kernel")
    streams.defer(work("large", large, large=True))
    main.before.clear()
    streams.wait_for_gradients([small])
    assert main.before == {"last of the blocks", "small"}
    streams.wait_for_gradients([large])
    assert "large" in main.before
