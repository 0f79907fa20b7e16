"""Published weights come from the hub's cache; a failed download is an error with its remedy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from pipeline.request.hub import CHECKPOINT_FILES, hub_folder
from pipeline.request.hub import snapshot as snapshot_of
from stages.catalogue import models
from stages.contract import Weights
from stages.errors import WeightsNotFound
from stages.models.families.stable_audio_3 import AUTOENCODERS
from stages.models.load_weights import load_autoencoder

SPEC = models()["small-music-base"]


class FakeHub:
    """Replaces snapshot_download and records its calls."""

    def __init__(self, cached: Path | None = None, online: Path | Exception | None = None) -> None:
        self.cached, self.online, self.asked = cached, online, []

    def __call__(self, repo: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        self.asked.append((repo, local_files_only))
        if local_files_only:
            if self.cached is None:
                raise LocalEntryNotFoundError("not cached")
            return str(self.cached)
        if isinstance(self.online, Exception):
            raise self.online
        return str(self.online)


def snapshot(folder: Path) -> Path:
    for name in ("model_config.json", "model.safetensors", "t5gemma-b-b-ul2/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def use(monkeypatch):
    def place(hub: FakeHub) -> FakeHub:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
        return hub

    return place


def test_a_cached_snapshot_is_used_without_asking_the_network(use, tmp_path):
    hub = use(FakeHub(cached=snapshot(tmp_path)))
    assert hub_folder(SPEC, download=True) == tmp_path
    assert hub.asked == [("stabilityai/stable-audio-3-small-music-base", True)]


def test_planning_never_downloads(use):
    hub = use(FakeHub())
    assert hub_folder(SPEC, download=False) is None
    assert [local for _, local in hub.asked] == [True]


def test_an_interrupted_download_is_completed(use, tmp_path):
    (tmp_path / "half").mkdir()
    hub = use(FakeHub(cached=tmp_path / "half", online=snapshot(tmp_path / "whole")))
    assert hub_folder(SPEC, download=True) == tmp_path / "whole"
    assert len(hub.asked) == 2


def refusal(kind):
    response = SimpleNamespace(headers={}, status_code=403, request=SimpleNamespace(url="", method="GET"))
    return kind("refused", response=response)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            refusal(GatedRepoError),
            "Accept the licence at https://huggingface.co/stabilityai/stable-audio-3-small-music-base",
        ),
        (OSError("no route to host"), "no route to host"),
        (LocalEntryNotFoundError("unreachable"), "could not be reached"),
    ],
    ids=["licence", "no network", "unreachable"],
)
def test_a_failed_download_says_why_and_what_to_type_next(use, error, says):
    use(FakeHub(online=error))
    with pytest.raises(WeightsNotFound, match="--weights") as caught:
        hub_folder(SPEC, download=True)
    assert says in str(caught.value)


def test_offline_mode_is_named_as_the_reason(use, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub = use(FakeHub())
    with pytest.raises(WeightsNotFound, match="Unset HF_HUB_OFFLINE"):
        hub_folder(SPEC, download=True)
    assert [local for _, local in hub.asked] == [True]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_stand_alone_autoencoder_comes_from_the_hub_the_same_way_and_loads(use, tmp_path, name):
    golden = Path(__file__).parent / "golden" / "tiny-s"
    config = json.loads((golden / "model_config.json").read_text())
    prefix = "pretransform.model."
    tensors = {
        key.removeprefix(prefix): value
        for key, value in load_file(golden / "model.safetensors").items()
        if key.startswith(prefix)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    alone = {"sample_rate": 44_100, "model": config["model"]["pretransform"]["config"]}
    (tmp_path / "model_config.json").write_text(json.dumps(alone))
    hub = use(FakeHub(online=tmp_path))

    folder = snapshot_of(AUTOENCODERS[name], CHECKPOINT_FILES, download=True)

    assert folder == tmp_path
    assert {repo for repo, _ in hub.asked} == {AUTOENCODERS[name]}
    autoencoder = load_autoencoder(Weights(model=name, folder=folder, config=alone, digests={}))
    whole = load_autoencoder(Weights(model="tiny-s", folder=golden, config=config, digests={}))
    audio = torch.linspace(-1, 1, 2 * 8192).view(2, 8192)
    assert torch.equal(autoencoder.encode_clip(audio), whole.encode_clip(audio))
