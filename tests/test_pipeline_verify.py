"""verify and repair on a small real store that is damaged on purpose."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cache.errors import CacheError
from cache.fingerprint import digest_file
from cache.shard_pool import ShardPool
from cache.shards import load
from cache.store import Store
from pipeline.cli import app
from pipeline.execution.runner import RunResult, run_until
from pipeline.maintenance.damage import Damage
from pipeline.maintenance.gc import gc
from pipeline.maintenance.repair import repair
from pipeline.maintenance.verify import verify
from pipeline.maintenance.verify_command import next_commands
from pipeline.report import Report
from pipeline.request.recipe import read_recipe
from stages.errors import StageError, WeightsNotFound
from stages.models.families import tiny
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.prepared_audio import read_prepared
from tests.broken_files import emptied, linked_in_a_circle, lost, replaced_by_a_folder, truncated
from tests.small_datasets import sound, tone

FLAGS = {"model": "tiny-base", "number_of_steps": 2, "pre_encode": True, "rank": 2, "workers": 1, "threads": 1}
CLIPS = ("bright", "low", "middle")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("first")
    with zipfile.ZipFile(root / "clips.zip", "w") as archive:
        for number, name in enumerate(CLIPS):
            archive.writestr(f"{name}.wav", sound(tone(0.5 + 0.1 * number, hz=200.0 + 100 * number)))
            archive.writestr(f"{name}.txt", f"a {name} tone")
    with pytest.MonkeyPatch.context() as patched:
        # The zip is so new that its digests would not be remembered: then there is nothing to damage.
        patched.setattr("cache.digest_cache.RACY_SECONDS", 0)
        patched.setattr("cache.digest_cache.RACY_CHANGE_SECONDS", 0)
        request(root)
    return root


@pytest.fixture
def root(first_run, tmp_path) -> Path:
    """A copy of the store of one finished run."""
    shutil.copytree(first_run, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def store(root) -> Store:
    return Store(root / "artifacts")


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Samples of every clip that really goes through the autoencoder."""
    seen: list[int] = []
    encode_clip = Autoencoder.encode_clip

    def counting(self, audio, *args, **kwargs):
        seen.append(audio.shape[-1])
        return encode_clip(self, audio, *args, **kwargs)

    monkeypatch.setattr(Autoencoder, "encode_clip", counting)
    return seen


def request(root: Path, last: str = "train", **flags) -> RunResult:
    places = {"store": str(root / "artifacts"), "output": str(root / "output")}
    return run_until(last, read_recipe(str(root / "clips.zip"), {**FLAGS, **places, **flags}), Report())


def states(done: RunResult) -> list[str]:
    return [run.state.value for run in done.plan.runs]


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def flip(file: Path, offset: int) -> None:
    """One bit of a file."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def flip_item(shard: Path, row: int) -> str:
    """A bit in the middle of one item; returns its key."""
    layout = load("parquet").Reader(shard)._opened()
    assert layout.offsets is not None
    flip(shard, layout.offsets[row] + layout.header.num_frames[row] * layout.header.frame_bytes // 2)
    return layout.header.keys[row]


def damages(store: Store) -> list[Damage]:
    return list(verify(store).damages)


def repair_store(store: Store) -> list[str]:
    return repair(store, damages(store), lambda line: None)


def test_an_intact_store_has_no_damage_and_every_part_is_checked(store):
    checked = verify(store)
    assert checked.damages == ()
    assert (checked.num_artifacts, checked.num_shards, checked.num_prepared) == (3, 2, 3)


def test_one_flipped_bit_affects_one_clip_and_only_that_is_encoded_again(root, store, encoded):
    shard = only(store.shared / "latents", "*.parquet")
    before, adapter = shard.read_bytes(), (root / "output" / "clips.safetensors").read_bytes()
    flip_item(shard, 2)
    (damage,) = damages(store)
    assert (damage.kind, damage.clips) == ("shard", ("low",))
    assert "1 of its items" in damage.meaning
    assert repair_store(store) == [f"{damage.path}: removed; 3 intact items were saved"]

    done = request(root)

    assert states(done) == ["HIT", "RESUME", "HIT"]
    assert f"shard latents/{shard.name} is gone" in done.plan.runs[1].reason
    assert "1 of 3 clips to encode" in done.plan.runs[1].reason
    assert len(encoded) == 1
    assert damages(store) == []
    assert (root / "output" / "clips.safetensors").read_bytes() == adapter
    assert not shard.exists()
    assert before  # the items were saved, not the file


def test_a_shard_with_a_damaged_index_is_removed_entirely(root, store, encoded):
    shard = only(store.shared / "latents", "*.parquet")
    before = shard.read_bytes()
    flip(shard, len(before) - 20)
    (damage,) = damages(store)
    assert (damage.kind, damage.clips) == ("shard", CLIPS)
    repair_store(store)
    request(root)
    assert len(encoded) == 4  # the silence too
    assert shard.read_bytes() == before


@pytest.mark.parametrize("pool", ["latents", "prompts"])
def test_a_lost_shard_is_no_hit_and_is_made_again_byte_for_byte(root, store, encoded, pool):
    shard = only(store.shared / pool, "*.parquet")
    before = shard.read_bytes()
    shard.unlink()
    assert [damage.kind for damage in damages(store)] == ["gone"]
    done = request(root)
    assert states(done) == ["HIT", "RESUME", "HIT"]
    assert f"shard {pool}/{shard.name} is gone" in done.plan.runs[1].reason
    assert len(encoded) == (4 if pool == "latents" else 0)
    assert shard.read_bytes() == before
    assert damages(store) == []
    assert states(request(root)) == ["HIT", "HIT", "HIT"]


def test_a_truncated_shard_is_noticed_by_the_plan(root, store):
    shard = only(store.shared / "latents", "*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1])
    repair_store(store)
    assert states(request(root))[1] == "RESUME"
    assert damages(store) == []


def test_damaged_prepared_audio_is_dropped_and_made_again_only_when_it_is_read(root, store, encoded):
    audio = sorted((store.shared / "prepared").glob("*/*.flac"))[0]
    flip(audio, audio.stat().st_size // 2)
    (damage,) = damages(store)
    assert damage.kind == "prepared"
    repair_store(store)
    assert states(request(root)) == ["HIT", "HIT", "HIT"]
    assert not audio.exists()
    done = request(root, "ingest")
    assert states(done) == ["RESUME"]
    assert "is gone" in done.plan.runs[0].reason
    assert audio.exists()
    assert (encoded, damages(store)) == ([], [])


def test_prepared_audio_dropped_by_gc_is_made_again_where_a_clip_must_be_encoded(root, store, encoded):
    gc(store, lambda line: None, dry_run=False, prepared=True)
    assert not list((store.shared / "prepared").glob("*/*.flac"))
    assert states(request(root)) == ["HIT", "HIT", "HIT"]
    assert damages(store) == []
    done = request(root, "encode", latent_dtype="float32")
    assert states(done) == ["RESUME", "MISS"]
    assert len(encoded) == 4
    assert len(list((store.shared / "prepared").glob("*/*.flac"))) == 3


def test_a_damaged_manifest_is_made_again_and_nothing_is_encoded(root, store, encoded):
    flip(only(store.root / "encode", "*/manifest.parquet"), 300)
    (damage,) = damages(store)
    assert (damage.kind, damage.what) == ("artifact", "manifest.parquet has other bytes than when it was committed")
    repair_store(store)
    done = request(root)
    assert (states(done), encoded) == (["HIT", "MISS", "HIT"], [])
    assert damages(store) == []


@pytest.mark.parametrize("stage", ["ingest", "encode", "train"])
def test_an_artifact_with_a_damaged_receipt_is_removed_and_nothing_is_encoded(root, store, encoded, stage):
    adapter = (root / "output" / "clips.safetensors").read_bytes()
    receipt = only(store.root / stage, "*/receipt.json")
    receipt.write_text(receipt.read_text().replace('"started": "2', '"started": "3'))
    assert [damage.kind for damage in damages(store)] == ["receipt"]
    repair_store(store)
    done = request(root)
    assert states(done)[("ingest", "encode", "train").index(stage)] in ("MISS", "RESUME")
    assert (encoded, damages(store)) == ([], [])
    assert (root / "output" / "clips.safetensors").read_bytes() == adapter


def test_a_damaged_adapter_is_written_again_from_its_checkpoint_without_a_step_of_training(root, store, monkeypatch):
    adapter = (root / "output" / "clips.safetensors").read_bytes()
    flip(only(store.root / "train", "*/adapter.safetensors"), 2000)
    assert [damage.kind for damage in damages(store)] == ["artifact"]
    assert repair_store(store)[0].endswith("the same command continues from its checkpoint")

    from stages.train.loop import TrainingLoop

    steps = []
    make_step = TrainingLoop.make_step
    monkeypatch.setattr(TrainingLoop, "make_step", lambda self: steps.append(1) or make_step(self))
    done = request(root)
    assert states(done) == ["HIT", "HIT", "RESUME"]
    assert (steps, damages(store)) == ([], [])
    assert (root / "output" / "clips.safetensors").read_bytes() == adapter


def test_rows_that_do_not_match_an_intact_shard_are_found(root, store, encoded):
    shard = only(store.shared / "latents", "*.parquet")
    reader, size = load("parquet").Reader(shard), shard.stat().st_size
    items, metadata = [(key, reader.read(row)) for row, key in enumerate(reader.keys)], dict(reader.metadata)
    for factor in range(2, 40):  # checksums are written in as few bytes as they need: find ones of the same length
        shard.unlink()
        load("parquet").write(shard, [(key, values / np.float16(factor)) for key, values in items], metadata)
        if shard.stat().st_size == size:
            break
    assert [damage.kind for damage in damages(store)] == ["rows"]
    repair_store(store)
    request(root)
    assert (encoded, damages(store)) == ([], [])


@pytest.mark.parametrize("suffix", [".zip", ".safetensors"])
def test_a_damaged_download_is_found_and_removed(store, suffix):
    content = b"as it was downloaded"
    file = store.shared / "sources" / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    assert damages(store) == []
    flip(file, 3)
    (damage,) = damages(store)
    assert (damage.kind, damage.path) == ("source", f"shared/sources/{file.name}")
    repair_store(store)
    assert not file.exists()


@pytest.fixture
def bundled(monkeypatch, tmp_path) -> Path:
    """A copy of the weights of tiny-base, in the place of those that ship with the project."""
    folder = Path(shutil.copytree(tiny.FOLDER, tmp_path / "bundled"))
    monkeypatch.setattr(tiny, "FOLDER", folder)
    return folder


NAMES = sorted(path.relative_to(tiny.FOLDER).as_posix() for path in tiny.FOLDER.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["flipped", "lost"])
def test_a_run_never_uses_damaged_bundled_weights(root, bundled, name, damage):
    file = bundled / name
    file.unlink() if damage == "lost" else flip(file, file.stat().st_size - 5)
    with pytest.raises(WeightsNotFound, match=f"{Path(name).name}.* Install the project again.*git restore"):
        request(root, number_of_steps=1)


def test_weights_damaged_behind_the_systems_back_are_not_loaded_either(root, bundled, monkeypatch):
    right = bundled / "model.safetensors"
    remembered = {file: digest_file(file) for file in bundled.rglob("*") if file.is_file()}
    monkeypatch.setattr("cache.digest_cache.DigestCache.digest", lambda self, path: remembered[path])
    flip(right, right.stat().st_size - 5)
    with pytest.raises(WeightsNotFound, match=r"model.safetensors has other bytes than it came with"):
        request(root, number_of_steps=1)


def test_bundled_weights_need_not_be_writable(root, bundled):
    for path in (*bundled.rglob("*"), bundled):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert states(request(root)) == ["HIT", "HIT", "HIT"]


def test_the_command_reports_damage_its_meaning_and_what_to_type_next(root, store):
    shard = only(store.shared / "latents", "*.parquet")
    flip_item(shard, 1)
    call = ["verify", "--store", str(store.root), "--json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 1
    found = json.loads(done.stdout)  # one document, though the command failed
    assert [(one["kind"], one["clips"]) for one in found["damages"]] == [("shard", ["bright"])]
    assert found["next"] == next_commands(verify(store), store.root)
    assert found["next"] == [f"sa3-trainer encode DATA --store {store.root}  (with the --model of those clips)"]
    assert next_commands(verify(store), Path("artifacts")) == [
        "sa3-trainer encode DATA  (with the --model of those clips)"
    ]
    assert shard.exists()
    repaired = CliRunner().invoke(app, [*call[:3], "--repair"])
    assert repaired.exit_code == 0
    assert "sa3-trainer encode DATA" in repaired.stdout
    assert not shard.exists()


def typed(store: Store, *words: str):
    return CliRunner().invoke(app, ["verify", "--store", str(store.root), *words])


def test_after_a_repair_only_lost_items_are_reported(store):
    flip_item(only(store.shared / "latents", "*.parquet"), 2)
    repair_store(store)
    (damage,) = damages(store)
    assert (damage.kind, damage.clips) == ("gone", ("low",))
    assert damage.meaning == "1 of its items is lost: lost latents are encoded again"


def test_after_a_repair_of_the_silence_no_clip_is_reported(store):
    flip_item(only(store.shared / "latents", "*.parquet"), 0)
    repair_store(store)
    (damage,) = damages(store)
    assert (damage.kind, damage.clips) == ("gone", ())


def test_after_a_repair_nothing_advises_another_one(store):
    flip_item(only(store.shared / "latents", "*.parquet"), 0)
    assert typed(store, "--repair").exit_code == 0
    again = typed(store)
    assert again.exit_code == 1
    assert "1 file is missing, and nothing is damaged" in again.stderr
    assert "--repair" not in again.stderr
    assert "sa3-trainer encode DATA" in again.stdout and ": 1 missing" in again.stdout


def test_a_missing_shard_of_two_encodings_is_reported_once_with_all_its_clips(root, store):
    request(root, "encode", trigger_phrase="now")  # other prompts, the same latents
    only(store.shared / "latents", "*.parquet").unlink()
    (damage,) = damages(store)
    assert (damage.kind, damage.clips) == ("gone", CLIPS)
    assert damage.meaning.startswith("all its items are lost")


def test_a_missing_shard_whose_items_are_in_other_shards_loses_none(root, store, encoded):
    shard = only(store.shared / "latents", "*.parquet")
    reader = load("parquet").Reader(shard)
    items = [(key, reader.read(row)) for row, key in enumerate(reader.keys)]
    for part in (items[:1], items[1:]):
        ShardPool(store.shared / "latents", "parquet").write(part, dict(reader.metadata))
    shard.unlink()
    (damage,) = damages(store)
    assert (damage.clips, damage.meaning.startswith("its items are in other shards")) == ((), True)
    request(root)
    assert (encoded, damages(store)) == ([], [])


# Every kind of file, damaged in every way: nothing but the right adapter is handed out, and the advice works.


def flipped(file: Path) -> None:
    flip(file, file.stat().st_size // 2)


FILES = {
    "the adapter": "train/*/adapter.safetensors",
    "its config": "train/*/config.json",
    "the receipt of the training": "train/*/receipt.json",
    "the unrounded adapter": "train/*/adapter_fp32.safetensors",
    "the record of a checkpoint": "train/*/checkpoints/*/checkpoint.json",
    "the tensors of a checkpoint": "train/*/checkpoints/*/tensors.safetensors",
    "the table of layers": "train/*/layers.parquet",
    "the table of clips": "train/*/metrics.parquet",
    "the table of steps": "train/*/steps.parquet",
    "the receipt of the encoding": "encode/*/receipt.json",
    "the list of clips": "ingest/*/manifest.parquet",
    "the list of latents": "encode/*/manifest.parquet",
    "the list of prompts": "encode/*/prompts.parquet",
    "the list of shared files": "encode/*/needs.tsv",
    "a shard of latents": "shared/latents/*.parquet",
    "a shard of prompts": "shared/prompts/*.parquet",
    "the registry of latents": "shared/latents/registry-*.sqlite",
    "the remembered digests": "digests.sqlite",
    "the mark of the store": ".sa3-trainer-store",
}


def adapter_or_error(root: Path, **flags) -> bytes | str:
    """The adapter handed out, or the message of the run that refuses."""
    shutil.rmtree(root / "output", ignore_errors=True)
    try:
        request(root, **flags)
    except (CacheError, StageError) as error:
        assert "verify --repair --store" in str(error), "the message says what to type"
        return str(error)
    return (root / "output" / "clips.safetensors").read_bytes()


DAMAGES = (flipped, truncated, emptied, lost, replaced_by_a_folder, linked_in_a_circle)


def check_damage(root: Path, store: Store, pattern: str, damage: Callable[[Path], None]) -> None:
    right = (root / "output" / "clips.safetensors").read_bytes()
    damage(only(store.root, pattern))
    found = damages(store)
    assert adapter_or_error(root) == right or found, "what a run refuses, verify reports"
    repair_store(store)
    assert adapter_or_error(root) == right
    assert damages(store) == []


@pytest.mark.parametrize(("pattern", "damage"), list(zip(FILES.values(), cycle(DAMAGES), strict=False)), ids=FILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_damaged_file_never_gives_another_adapter_and_a_repair_gives_the_right_one(root, store, pattern, damage):
    check_damage(root, store, pattern, damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", FILES.values(), ids=FILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_so_it_is_for_every_kind_of_damage(root, store, pattern, damage):
    check_damage(root, store, pattern, damage)


LIGHT = [
    ["status"],
    ["status", "--json"],
    ["plan", "clips.zip", "--model", "tiny-base", "--pre-encode", "--rank", "2", "--number-of-steps", "3"],
    ["explain", "clips.zip", "low", "--model", "tiny-base"],
    ["gc", "--dry-run"],
    ["evict", "--stage", "train", "--dry-run"],
    ["verify"],
]
OF_TRAINING = [pattern for pattern in FILES.values() if pattern.startswith("train/")]


def check_commands(root: Path, store: Store, pattern: str, damage: Callable[[Path], None]) -> None:
    """Every light command does its work or says what is wrong and what to type; more steps never end in a traceback."""
    damage(only(store.root, pattern))
    for words in LIGHT:
        done = CliRunner().invoke(app, [*words, "--store", str(store.root)])
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
        assert done.exit_code == 0 or "verify --repair" in done.output or "matches" in done.output, done.output
    given = adapter_or_error(root, number_of_steps=3)
    repair_store(store)
    mended = adapter_or_error(root, number_of_steps=3)
    assert isinstance(mended, bytes) and given in (mended, given if isinstance(given, str) else mended)


@pytest.mark.parametrize(
    ("pattern", "damage"), list(zip(OF_TRAINING, cycle(DAMAGES), strict=False)), ids=[*map(str, OF_TRAINING)]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_command_ends_in_a_traceback_over_a_damaged_file_of_a_training(root, store, monkeypatch, pattern, damage):
    monkeypatch.chdir(root)
    check_commands(root, store, pattern, damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", OF_TRAINING)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_so_it_is_for_every_damage_to_a_training(root, store, monkeypatch, pattern, damage):
    monkeypatch.chdir(root)
    check_commands(root, store, pattern, damage)


@pytest.fixture
def two_trainings(root) -> tuple[Path, Path]:
    """Folders of two trainings: that of the first run, and one of rank 3."""
    first = only(root / "artifacts" / "train", "*")
    request(root, rank=3, name="other")
    (second,) = set((root / "artifacts" / "train").iterdir()) - {first}
    return first, second


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.replace(aside)
    other.replace(one)
    aside.replace(other)


@pytest.mark.parametrize("what", ["receipt.json", "."], ids=["receipts", "whole folders"])
def test_exchanged_receipts_or_folders_are_put_back_and_nothing_is_trained_again(root, store, two_trainings, what):
    right = {name: (root / "output" / f"{name}.safetensors").read_bytes() for name in ("clips", "other")}
    exchange(*(folder / what if what != "." else folder for folder in two_trainings))
    assert {damage.kind for damage in damages(store)} == {"receipt"}
    assert "it is that of train" in adapter_or_error(root)
    repair_store(store)
    assert damages(store) == []
    for name, rank in (("clips", 2), ("other", 3)):
        assert states(request(root, rank=rank, name=name)) == ["HIT", "HIT", "HIT"]
        assert (root / "output" / f"{name}.safetensors").read_bytes() == right[name]


def test_a_receipt_copied_over_that_of_another_training_costs_no_finished_step(root, store, two_trainings):
    right = (root / "output" / "clips.safetensors").read_bytes()
    first, second = two_trainings
    shutil.copy(second / "receipt.json", first / "receipt.json")
    assert [damage.kind for damage in damages(store)] == ["receipt"]
    repair_store(store)
    assert states(request(root)) == ["HIT", "HIT", "RESUME"]
    assert (root / "output" / "clips.safetensors").read_bytes() == right
    assert damages(store) == []


def test_a_copy_of_an_artifact_under_another_name_is_no_artifact(root, store):
    folder = only(store.root / "train", "*")
    shutil.copytree(folder, folder.with_name(f"{folder.name} (copy)"))
    assert damages(store) == [] and len(store.receipts()) == 3


@pytest.mark.parametrize("name", ["train", "scratch", "shared/latents", "shared/prompts", "locks", "digests.sqlite"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_file_in_place_of_a_folder_or_the_reverse_is_reported_and_moved_out_of_the_way(root, store, name):
    right = (root / "output" / "clips.safetensors").read_bytes()
    path = store.root / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"in the way")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    assert "place" in {damage.kind for damage in damages(store)}
    repair_store(store)
    assert adapter_or_error(root) == right
    assert damages(store) == []


@pytest.mark.parametrize("suffix", [".flac", ".json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_audio_is_reported_and_made_again(root, store, suffix, damage):
    damage(min((store.shared / "prepared").glob(f"*/*{suffix}")))
    found = damages(store)
    if not (damage is lost and suffix == ".flac"):  # a missing clip is made again without a word of advice
        assert [one.kind for one in found] == ["prepared"]
    repair_store(store)
    request(root, "ingest")
    assert damages(store) == []
    assert read_prepared(min((store.shared / "prepared").glob("*/*.flac"))).any()


def test_a_run_that_meets_damaged_prepared_audio_says_what_mends_it(root, store):
    right = (root / "output" / "clips.safetensors").read_bytes()
    flipped(min((store.shared / "prepared").glob("*/*.flac")))
    shutil.rmtree(store.shared / "latents")
    assert "is damaged (it has other bytes" in adapter_or_error(root)
    repair_store(store)
    assert adapter_or_error(root) == right


def test_a_lock_that_is_a_link_is_reported_and_removed(root, store):
    lock = min((store.root / "locks").glob("*.lock"))
    lock.replace(root / "elsewhere")
    lock.symlink_to(root / "elsewhere")
    assert [damage.path for damage in damages(store)] == [f"locks/{lock.name}"]
    repair_store(store)
    assert damages(store) == []


def test_a_pipe_in_place_of_prepared_audio_is_reported_and_not_waited_for(root, store):
    audio = min((store.shared / "prepared").glob("*/*.flac"))
    audio.unlink()
    os.mkfifo(audio)
    assert [damage.what for damage in damages(store)] == ["it is no regular file"]
    repair_store(store)
    assert not audio.exists()
