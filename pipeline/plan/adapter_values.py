"""Whether the adapter to continue from holds finite values, before anything runs. Light: standard library only."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import FieldError, RecipeError
from pipeline.plan.stage_run import Plan, State
from stages.adapters.adapter_header import read_adapter_header
from stages.adapters.finite_values import not_finite

_SHOWN = 5


def check_adapter_values(plan: Plan, file: Path | None) -> None:
    """Refuse to continue from an adapter with NaN or infinity; a training that is finished has read it before.

    A `.ckpt` holds its tensors in a form that only torch reads: of that, the train stage says the same.

    Raises:
        RecipeError: naming the tensors.
    """
    trains = any(run.stage.name == "train" and run.state is not State.HIT for run in plan.runs)
    if file is None or not trains or read_adapter_header(file).is_archive:
        return
    if keys := list(not_finite(file)):
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        message = (
            f"{file.name} holds NaN or infinite values ({', '.join(keys[:_SHOWN])}{more}): its training went wrong or "
            "the file is damaged. Give an earlier step's file, or start without it"
        )
        raise RecipeError([FieldError(loc=("lora_checkpoint_url",), type="not_finite", msg=message, input=str(file))])
