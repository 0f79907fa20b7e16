"""The functions of `import sa3_trainer`: results, events, errors, threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sa3_trainer
from tests.small_datasets import clips, folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path) -> dict[str, object]:
    """Fields of a request over two clips."""
    folder(tmp_path / "clips", clips("a", "b"))
    return {
        **{"data": tmp_path / "clips", "store": tmp_path / "store", "output": tmp_path / "output"},
        **{"model": "tiny-base", "workers": 1},
    }


def test_importing_it_loads_nothing_heavy():
    code = "import sys, sa3_trainer; sa3_trainer.run; print(sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_that_is_offered_is_there():
    assert [name for name in sa3_trainer.__all__ if not getattr(sa3_trainer, name).__doc__] == []
    assert set(dir(sa3_trainer)) == set(sa3_trainer.__all__)


def test_a_plan_says_what_would_be_done_and_changes_nothing(place):
    found = sa3_trainer.plan(**place, pre_encode=True)
    assert [(one.stage, one.state) for one in found.stages] == [
        ("ingest", "MISS"),
        ("encode", "MISS"),
        ("train", "MISS"),
    ]
    assert not found.nothing_to_do and not Path(place["store"]).exists()


def test_a_result_is_typed_and_reused_by_the_next_call(place):
    first, again = (sa3_trainer.ingest(**place, quiet=True) for _ in range(2))
    made = first.stages["ingest"]
    assert (made.reused, again.stages["ingest"].reused) == (False, True)
    assert made.facts["num_clips"] == 2 and (made.directory / "manifest.parquet").is_file()
    assert made.fingerprint == again.stages["ingest"].fingerprint
    assert (first.files, first.adapter, first.config) == ((), None, {})


def test_a_training_returns_its_adapter_and_what_it_brought(place):
    made = sa3_trainer.run(**place, steps=1, rank=2, quiet=True, pre_encode=True)
    assert list(made.stages) == ["ingest", "encode", "train"]
    assert made.adapter == Path(place["output"]) / "clips.safetensors" and made.adapter.is_file()
    assert made.config["steps_done"] == 1 and made.config["request"]["rank"] == 2
    again = sa3_trainer.train(**place, steps=1, rank=2, quiet=True)
    assert again.stages["train"].reused and again.adapter == made.adapter


def test_events_are_given_to_the_callback_and_nothing_is_written(place, capsys):
    heard: list[sa3_trainer.Event] = []
    sa3_trainer.ingest(**place, on_event=heard.append)
    kinds = [event.kind for event in heard]
    assert {"phase", "plan", "progress", "stage"} <= set(kinds)
    (stage,) = (event for event in heard if event.kind == "stage")
    assert stage.facts["stage"] == "ingest" and stage.facts["facts"]["num_clips"] == 2
    assert capsys.readouterr().err == ""


def test_without_a_callback_the_lines_of_a_log_are_written(place, capsys):
    sa3_trainer.ingest(**place)
    assert "ingest  done    2 clips" in capsys.readouterr().err


def test_a_wrong_request_is_one_error_with_every_field(place):
    with pytest.raises(sa3_trainer.TrainerError) as caught:
        sa3_trainer.run(**place, rank=0, steps="many", colour="red")
    assert caught.value.type == "RecipeError"
    assert {entry["loc"][-1] for entry in caught.value.detail} == {"rank", "number_of_steps", "colour"}


def test_bad_clips_are_listed_in_the_error(place):
    (Path(place["data"]) / "a.txt").unlink()
    with pytest.raises(sa3_trainer.TrainerError) as caught:
        sa3_trainer.ingest(**place, quiet=True)
    assert [entry["type"] for entry in caught.value.detail] == ["missing_caption"]


def test_it_can_be_called_from_any_thread(place):
    found: list[object] = []

    def work() -> None:
        try:
            found.append(sa3_trainer.ingest(**place, quiet=True))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert isinstance(found[0], sa3_trainer.RunResult)


def test_a_call_that_is_asked_to_stop_stops_and_goes_on_when_called_again(place):
    with pytest.raises(sa3_trainer.Stopped) as caught:
        sa3_trainer.ingest(**place, quiet=True, should_stop=lambda: True)
    assert isinstance(caught.value, sa3_trainer.TrainerError) and caught.value.type == "Stopped"
    assert sa3_trainer.ingest(**place, quiet=True).stages["ingest"].facts["num_clips"] == 2


def test_an_error_of_the_callback_reaches_the_caller(place):
    def fail(event: sa3_trainer.Event) -> None:
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        sa3_trainer.ingest(**place, on_event=fail)


def test_a_recipe_is_read_and_named_fields_win(place, tmp_path):
    (tmp_path / "a.toml").write_text('dataset = "clips"\nmodel = "tiny-base"\nrank = 4\n')
    fields = {name: place[name] for name in ("store", "output")}
    found = sa3_trainer.plan(recipe=tmp_path / "a.toml", **fields, rank=2)
    assert [one.stage for one in found.stages] == ["ingest", "train"]


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "sa3_trainer" / "py.typed").is_file()
    assert 'sa3_trainer = ["py.typed"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
