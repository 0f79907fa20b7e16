"""Train Stable Audio 3 adapters from Python: notebooks and scripts. Light: torch is loaded by the work that needs it.

    import sa3_trainer

    made = sa3_trainer.run("clips.zip", model="medium-base", pre_encode=True, steps=2000)
    print(made.adapter, made.config["loss_before"], made.config["loss_after"])

`plan` says what would be done, `ingest`, `encode` and `train` do a part of it. They take the fields of a request
(docs/fields.md) by name, reuse what the store holds, and return typed results. They may be called from any thread and
any number of times in a process; what they decide is what the command `sa3-trainer` decides.

Without `on_event` they write the lines of a log to stderr (`quiet=True`: warnings only); with it they call it with
every event (docs/formats.md, "Progress events") and write nothing. A call that fails raises `TrainerError`. Ctrl-C in
the main thread, or `should_stop` returning True, raises `Stopped` at the next safe point; the same call goes on there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa3_trainer.calls import encode, ingest, plan, run, train
    from sa3_trainer.results import Event, Plan, PlannedStage, RunResult, StageResult, Stopped, TrainerError

__all__ = [
    "Event",
    "Plan",
    "PlannedStage",
    "RunResult",
    "StageResult",
    "Stopped",
    "TrainerError",
    "encode",
    "ingest",
    "plan",
    "run",
    "train",
]

_CALLS = ("encode", "ingest", "plan", "run", "train")


def __getattr__(name: str) -> Any:
    """Import on first use: the command line is in this package, too, and needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{'calls' if name in _CALLS else 'results'}"), name)


def __dir__() -> list[str]:
    return __all__
