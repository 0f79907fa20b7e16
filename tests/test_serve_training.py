"""The server with its real commands: wrong files, a training, the answer of the store, a sound with an adapter."""

from __future__ import annotations

import io
import subprocess
import sys
import wave
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from pipeline.serve.http.app import make_app
from pipeline.serve.settings import Settings
from tests.serving import BASE, path_of, submit, upload, wait_for


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[TestClient]:
    settings = Settings(store=tmp_path_factory.mktemp("serve") / "store", threads=1)
    with TestClient(make_app(settings), base_url=BASE) as opened:
        yield opened


def wav(seed: int, seconds: float = 1.0) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 3000, int(44100 * seconds)).astype("<i2")
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, 44100, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def clips(**more: bytes) -> dict[str, bytes]:
    """Four clips with captions in nested folders, and what systems leave in zips."""
    files = {f"set/{n}.wav": wav(n) for n in range(4)} | {f"set/{n}.txt": b"a caption" for n in range(4)}
    return files | {"__MACOSX/set/._0.wav": b"x", "set/.DS_Store": b"x"} | more


def faults(client: TestClient, files: dict[str, bytes], **fields: Any) -> list[tuple[str, str]]:
    """(type, last item of loc) of each entry of the 422 that a dataset gets."""
    job = submit(client, audio_data_url=upload(client, zipped(files)), model="tiny-base", number_of_steps=1, **fields)
    wait_for(client, job)
    answer = client.get(path_of(job["response_url"]))
    assert answer.status_code == 422, answer.text
    assert all(entry["loc"][:2] == ["body", "audio_data_url"] for entry in answer.json()["detail"])
    return sorted((entry["type"], entry["loc"][-1]) for entry in answer.json()["detail"])


def test_every_wrong_file_of_a_dataset_has_an_entry(client):
    wrong = {"set/1.txt": b" ", "set/2.txt": b"\xff", "set/3.wav": b"RIFF\x24\0\0\0WAVEnothing", "set/9.wav": wav(9)}
    found = faults(client, clips() | wrong)
    assert len({name for _, name in found}) == 4
    assert {"missing_caption", "empty_caption"} <= {type for type, _ in found}


def test_a_name_that_leads_out_of_the_zip_and_duplicates_are_faults(client):
    assert faults(client, clips() | {"../evil.wav": wav(5), "../evil.txt": b"x"})
    assert faults(client, clips() | {"SET/0.WAV": wav(6), "SET/0.TXT": b"other"})


def test_what_is_no_zip_is_an_invalid_archive(client):
    job = submit(client, audio_data_url=upload(client, b"no zip"), model="tiny-base")
    wait_for(client, job)
    (entry,) = client.get(path_of(job["response_url"])).json()["detail"]
    assert entry["type"] == "invalid_archive"


def test_a_training_gives_its_files_and_the_store_answers_it_again(client):
    url = upload(client, zipped(clips()))
    wanted = {"model": "tiny-base", "number_of_steps": 2, "rank": 2, "pre_encode": True}
    job = submit(client, audio_data_url=url, **wanted)
    logs = wait_for(client, job)["logs"]
    result = client.get(path_of(job["response_url"])).json()
    config = client.get(path_of(result["config_file"]["url"])).json()
    assert config["number_of_steps"] == 2 and config["rank"] == 2 and config["inference_model"] == "tiny"
    assert any(line["message"].startswith("train   2/2") for line in logs)
    again = submit(client, audio_data_url=upload(client, zipped(clips())), **wanted)
    said = [line["message"] for line in wait_for(client, again)["logs"]]
    answer = client.get(path_of(again["response_url"])).json()
    assert "nothing to do: every result is in the store" in said
    contents = [client.get(path_of(found["lora_file"]["url"])).content for found in (result, answer)]
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_a_sound_is_made_with_the_adapter_of_a_training(client):
    url = upload(client, zipped(clips()))
    job = submit(client, audio_data_url=url, model="tiny-base", number_of_steps=2, rank=2)
    wait_for(client, job)
    adapter = client.get(path_of(job["response_url"])).json()["lora_file"]["url"]
    body = {"prompt": "-a sound", "duration": 1, "num_inference_steps": 1, "seed": 3, "loras": [{"path": adapter}]}
    answer = client.post("/run/fal-ai/stable-audio-3/tiny/text-to-audio/lora", json=body).json()
    content = client.get(path_of(answer["audio"]["url"])).content
    assert answer["seed"] == 3 and content[:4] == b"RIFF" and answer["audio"]["content_type"] == "audio/wav"


def test_the_server_loads_no_arrays(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.serve.server import make_app, Settings\n"
        "make_app(Settings(store=Path(sys.argv[1])))\nimport pipeline.serve.jobs.worker\n"
        "from pipeline.serve.http.openapi import document\ndocument('')\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'h5py', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
