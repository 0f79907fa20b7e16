"""What is done beside the chain: who waits for whom, on streams that only remember what they were told."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from stages.adapters.ops import side_streams
from stages.adapters.ops.side_streams import AT_ONCE, NUM_FIRST, Beside, Work
from stages.adapters.stacked.layer_group import Part


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


def work(name: str, made: torch.Tensor, *, large: bool = False) -> Work:
    return Work(run=lambda: now().run(name), read=[], made=[made], large=large)


def begun(beside: Beside) -> None:
    """Weights of every part given out, each to streams of its kind."""
    beside.begin()
    for part, numbers in ((Part.BEFORE, (0, 1, 2)), (Part.AT_ONCE, (3, 4)), (Part.BLOCKS, (3, 4, 5))):
        for number in numbers:
            with beside.on(number):
                now().run(f"{part.name} {number}")
        beside.mark(part)


def test_each_part_waits_for_its_own_weights_and_for_nothing_of_a_later_one(chain):
    beside = Beside(torch.device("cpu"))
    chain.run("batch")
    begun(beside)
    assert chain.before == {"batch", "BEFORE 0"}, "nothing is waited for before it is needed"
    before = {"batch", *(f"BEFORE {number}" for number in range(NUM_FIRST + 1))}
    beside.reach(Part.BEFORE)
    assert chain.before == before
    beside.reach(Part.AT_ONCE)
    assert chain.before == before | {"AT_ONCE 3", "AT_ONCE 4"}
    beside.reach(Part.BLOCKS)
    assert chain.before == before | {"AT_ONCE 3", "AT_ONCE 4", "BLOCKS 3", "BLOCKS 4", "BLOCKS 5"}


def test_a_part_is_waited_for_once_and_the_end_waits_for_what_nobody_came_to(chain):
    beside = Beside(torch.device("cpu"))
    begun(beside)
    beside.reach(Part.BEFORE)
    seen = set(chain.before)
    beside.reach(Part.BEFORE)
    assert chain.before == seen and "BLOCKS 5" not in seen
    beside.end()
    assert {"AT_ONCE 3", "BLOCKS 3", "BLOCKS 4", "BLOCKS 5"} <= chain.before


def test_what_a_stopped_step_left_is_waited_for_by_no_later_one(chain):
    beside, made = Beside(torch.device("cpu")), torch.zeros(1)
    begun(beside)
    beside.later(work("gradient", made))
    chain.before.clear()
    for stream in (*beside._first, *beside._later):
        stream.before.clear()
    beside.begin()
    for part in Part:
        beside.reach(part)
    beside.meet([made])
    beside.end()
    assert not chain.before


def test_a_gradient_begins_from_where_it_was_asked_for_and_its_reader_waits_for_it(chain):
    beside, made = Beside(torch.device("cpu")), [torch.zeros(1) for _ in range(AT_ONCE + 1)]
    for number, one in enumerate(made):
        chain.run(f"block {number}")
        beside.later(work(f"gradient {number}", one))
    assert not any(kernel.startswith("gradient") for kernel in chain.before)
    chain.run("much later")
    beside.meet([made[0]])
    assert {"gradient 0", "gradient 5"} <= chain.before and "gradient 6" not in chain.before
    beside.meet([made[-1]])
    assert "gradient 6" in chain.before
    assert "much later" not in beside._gradients.before


def test_what_waits_begins_before_a_large_gradient_whose_kernels_it_would_wait_for(chain):
    beside, (small, large) = Beside(torch.device("cpu")), (torch.zeros(1), torch.zeros(1))
    chain.run("last of the blocks")
    beside.later(work("small", small))
    chain.run("long kernel")
    beside.later(work("large", large, large=True))
    chain.before.clear()
    beside.meet([small])
    assert chain.before == {"last of the blocks", "small"}
    beside.meet([large])
    assert "large" in chain.before
