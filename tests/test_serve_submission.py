"""Bodies of requests: every wrong field at once, and what a training is then asked to do."""

from __future__ import annotations

import json
import tomllib

import pytest

from pipeline.request.recipe import read_recipe
from pipeline.serve.jobs.commands import toml
from pipeline.serve.submission import TAKEN
from tests.serving import TRAINER, path_of, server, submit, task_of, upload, wait_for

URL = {"audio_data_url": "https://example.com/a.zip"}
WRONG = {
    "model": ["large-base", 3],
    "number_of_steps": [0, 20001, "many", 1.5, True],
    "learning_rate": [0, 0.011, "fast"],
    "rank": [0, 257, "x"],
    "adapter_type": ["locon", 1],
    "batch_size": [0, 9, None.__class__.__name__],
    "duration": [0.5, 381, "long"],
    "pre_encode": ["perhaps", 3],
    "base_precision": ["int3", 16],
    "include": [3, [1]],
    "exclude": [{}, ","],
    "seed": [-1, 2**31, "dice"],
    "lora_checkpoint_url": [3, "ftp://example.com/a.safetensors", "/etc/passwd"],
    "audio_data_url": [3, "", "/etc", "file:///etc", "data:text/plain,x", "ftp://example.com/a.zip"],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_field_is_a_422_at_submit_that_names_it(tmp_path, field, value):
    with server(tmp_path) as client:
        answer = client.post(TRAINER, json=URL | {field: value})
    assert answer.status_code == 422
    (entry,) = answer.json()["detail"]
    assert entry["loc"] == ["body", field] or entry["loc"][:2] == ["body", field]
    assert {"msg", "type", "url"} <= entry.keys()


def test_all_wrong_fields_are_reported_at_once(tmp_path):
    with server(tmp_path) as client:
        answer = client.post(TRAINER, json={"rank": 0, "seed": -1, "audio_data_url": "/etc", "model": "x"})
    fields = {entry["loc"][1] for entry in answer.json()["detail"]}
    assert fields == {"rank", "seed", "audio_data_url", "model"} and answer.json()["message"]


def test_a_missing_data_address_is_named(tmp_path):
    with server(tmp_path) as client:
        answers = [client.post(TRAINER, json={}), client.post(TRAINER)]
    assert all(answer.json()["detail"][0]["loc"] == ["body", "audio_data_url"] for answer in answers)
    assert {answer.json()["detail"][0]["type"] for answer in answers} == {"missing"}


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"3", b'"x"', b'{"rank": NaN}', b'{"rank": "\\ud800"}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_json_object_is_a_422(tmp_path, body):
    with server(tmp_path) as client:
        answer = client.post(TRAINER, content=body)
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body"]


def test_null_means_unset_for_every_optional_field(tmp_path):
    with server(tmp_path) as client:
        job = submit(client, **{field.name: None for field in TAKEN})
        wait_for(client, job)
    assert task_of(tmp_path, job)["recipe"] == URL


def test_unknown_fields_and_those_of_the_server_are_ignored_with_a_line_in_the_log(tmp_path):
    with server(tmp_path) as client:
        job = submit(
            client,
            learnin_rate=1,
            store="/elsewhere/x",
            output="/elsewhere/y",
            device="cuda",
            max_clips=3,
            webhook_url="x",
        )
        lines = [line["message"] for line in wait_for(client, job)["logs"] if line["level"] == "WARN"]
    assert len(lines) == 6 and "learnin_rate is not a field" in lines[0] and "learning_rate?" in lines[0]
    assert task_of(tmp_path, job)["recipe"] == URL


@pytest.mark.parametrize("names", [["a", "b"], "a,b", "a b"])
def test_include_may_be_a_list_or_one_text(tmp_path, names):
    with server(tmp_path) as client:
        job = submit(client, include=names)
        wait_for(client, job)
    asked = read_recipe("clips.zip", {"model": "tiny-base", "include": task_of(tmp_path, job)["recipe"]["include"]})
    assert asked.values["include"] == ("a", "b")


def test_a_recipe_holds_any_text(tmp_path):
    values = {"a": 'quotes " \\ \n tab \t \x7f \x00 ü 🎹', "b": 3, "c": 1e-05, "d": True, "e": ["x", "y"], "f": 1e300}
    assert tomllib.loads(toml(values)) == values


def test_a_sound_is_asked_for_with_the_adapter_of_a_training(tmp_path):
    with server(tmp_path) as client:
        url = upload(client, b"weights", "adapter.safetensors")
        body = {"prompt": "-warm pad", "loras": [{"path": url}], "seed": 3, "duration": 5}
        answer = client.post("/fal-ai/stable-audio-3/small/music/text-to-audio/lora", json=body)
        job = answer.json()
        wait_for(client, job)
    task = task_of(tmp_path, job)
    assert "/fal-ai/stable-audio-3/requests/" in job["status_url"] and task["model"] == "small-music"
    assert task["adapters"][0]["scale"] == 1.0 and task["adapters"][0]["file"].endswith("adapter.safetensors")


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"prompt": ""}, ["prompt"]),
        ({"duration": 0}, ["duration"]),
        ({"duration": 121}, ["duration"]),
        ({"loras": [{"path": "/etc/passwd"}]}, ["loras", 0, "path"]),
        ({"loras": [{"scale": 1}]}, ["loras", 0, "path"]),
        ({"num_inference_steps": 101}, ["num_inference_steps"]),
        ({"output_format": "exe"}, ["output_format"]),
        ({"seed": -1}, ["seed"]),
    ],
)
def test_a_wrong_field_of_a_sound_is_named(tmp_path, change, loc):
    with server(tmp_path) as client:
        answer = client.post("/fal-ai/stable-audio-3/tiny/text-to-audio/lora", json={"prompt": "x"} | change)
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", *loc]


def test_an_unknown_application_is_a_404_that_names_the_trainer(tmp_path):
    with server(tmp_path) as client:
        answer = client.post("/fal-ai/flux/dev", json={})
    assert answer.status_code == 404 and "stable-audio-3-trainer" in answer.json()["detail"]


def test_the_openapi_document_has_every_field_of_a_training(tmp_path):
    with server(tmp_path) as client:
        document = client.get("/openapi.json").json()
    schema = document["components"]["schemas"]["TrainerInput"]
    assert {"rank", "audio_data_url", "trigger_phrase"} <= schema["properties"].keys()
    assert not {"store", "output", "device", "max_clips"} & schema["properties"].keys()
    assert schema["properties"]["rank"]["maximum"] == 256 and TRAINER in document["paths"]
    assert json.dumps(document)


def test_files_are_served_by_path_only_below_the_folder_that_was_named(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.zip").write_bytes(b"x")
    (tmp_path / "b.zip").write_bytes(b"x")
    (folder / "link.zip").symlink_to(tmp_path / "b.zip")
    with server(tmp_path, files_below=folder) as client:
        for text in ("a.zip", f"file://{folder}/a.zip", str(folder / "a.zip")):
            submit(client, audio_data_url=text)
        for text in ("../b.zip", "link.zip", f"file://{tmp_path}/b.zip", "/etc/passwd", "a\0.zip", "x" * 5000):
            assert client.post(TRAINER, json={"audio_data_url": text}).status_code == 422


def test_a_file_of_this_server_that_is_not_whole_is_refused(tmp_path):
    with server(tmp_path) as client:
        begun = client.post("/storage/upload/initiate", json={"file_name": "a.zip"}).json()
        answer = client.post(TRAINER, json={"audio_data_url": begun["file_url"]})
    assert answer.json()["detail"][0]["type"] == "file_download_error" and path_of(begun["file_url"])
