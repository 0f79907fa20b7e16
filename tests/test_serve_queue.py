"""Submit, status, stream, result and cancel, as the hosted queue answers them."""

from __future__ import annotations

import json
import time

import pytest

from tests.serving import (
    FINISHES,
    TRAINER,
    WAITS,
    path_of,
    refuses,
    server,
    submit,
    task_of,
    wait_for,
)


def test_a_submit_answers_with_the_id_and_the_three_addresses(tmp_path):
    with server(tmp_path) as client:
        job = submit(client)
    assert job["status"] == "IN_QUEUE" and job["queue_position"] == 0
    root = f"http://127.0.0.1{TRAINER}/requests/{job['request_id']}"
    assert [job[name] for name in ("response_url", "status_url", "cancel_url")] == [
        root,
        f"{root}/status",
        f"{root}/cancel",
    ]


def test_the_result_of_a_training_is_the_two_files_with_name_type_and_size(tmp_path):
    with server(tmp_path) as client:
        job = submit(client)
        wait_for(client, job)
        result = client.get(path_of(job["response_url"])).json()
        content = client.get(path_of(result["lora_file"]["url"])).content
    assert sorted(result) == ["config_file", "lora_file"] and content == b"weights"
    file = {name: result["lora_file"][name] for name in ("content_type", "file_name", "file_size")}
    assert file == {"content_type": "application/octet-stream", "file_name": "adapter.safetensors", "file_size": 7}


def test_a_waiting_job_has_its_place_and_202_a_finished_one_200_with_its_time(tmp_path):
    with server(tmp_path, WAITS) as client:
        first, second, third = submit(client), submit(client, rank=2), submit(client, rank=3)
        wait_for(client, first, "IN_PROGRESS")
        answers = [client.get(path_of(job["status_url"])) for job in (second, third)]
        assert [(answer.status_code, answer.json()["queue_position"]) for answer in answers] == [(202, 0), (202, 1)]
        client.put(path_of(third["cancel_url"]))
        ended = client.get(path_of(third["status_url"]))
    assert ended.status_code == 200 and ended.json()["status"] == "COMPLETED"


@pytest.mark.parametrize("logs", ["0", "1", "true", "false", ""])
def test_every_status_has_logs_however_they_are_asked_for(tmp_path, logs):
    with server(tmp_path) as client:
        job = submit(client)
        wait_for(client, job)
        body = client.get(f"{path_of(job['status_url'])}?logs={logs}").json()
    assert bool(body["logs"]) == (logs in ("1", "true")) and isinstance(body["logs"], list)


def test_a_log_line_has_message_level_source_and_time(tmp_path):
    with server(tmp_path) as client:
        line = wait_for(client, submit(client))["logs"][0]
    assert sorted(line) == ["level", "message", "source", "timestamp"]
    assert line["source"] == "USER" and line["message"].startswith("train   1/2")


def test_the_stream_sends_each_line_once_and_ends_with_completed(tmp_path):
    with server(tmp_path) as client:
        job = submit(client)
        with client.stream("GET", f"{path_of(job['status_url'])}/stream?logs=1") as answer:
            events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        total = wait_for(client, job)["logs"]
    assert events[-1]["status"] == "COMPLETED"
    assert [line for event in events for line in event["logs"]] == total


def test_a_result_that_is_not_there_yet_is_a_400(tmp_path):
    with server(tmp_path, WAITS) as client:
        job = submit(client)
        answer = client.get(path_of(job["response_url"]))
    assert answer.status_code == 400 and "in progress" in answer.json()["detail"]


def test_cancel_answers_by_state(tmp_path):
    with server(tmp_path, WAITS) as client:
        running, queued = submit(client), submit(client, rank=2)
        wait_for(client, running, "IN_PROGRESS")
        answers = [client.put(path_of(job["cancel_url"])) for job in (queued, running)]
        wait_for(client, running)
        answers += [client.put(path_of(running["cancel_url"])), client.put(f"{TRAINER}/requests/none/cancel")]
    found = [(answer.status_code, answer.json()["status"]) for answer in answers]
    expected = [(200, "OK"), (202, "CANCELLATION_REQUESTED"), (400, "ALREADY_COMPLETED"), (404, "NOT_FOUND")]
    assert found == expected


def test_a_cancelled_job_is_completed_with_an_error_and_its_result_is_499(tmp_path):
    with server(tmp_path, WAITS) as client:
        job = submit(client)
        wait_for(client, job, "IN_PROGRESS")
        client.put(path_of(job["cancel_url"]))
        status, result = wait_for(client, job), client.get(path_of(job["response_url"]))
    assert status["error_type"] == result.json()["error_type"] == "client_cancelled" and result.status_code == 499
    assert result.headers["x-fal-error-type"] == "client_cancelled"


def test_a_command_that_does_not_heed_a_cancellation_is_killed(tmp_path):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', file=sys.stderr, flush=True); time.sleep(60)"
    deaf = f"import signal, sys, time; {deaf}"
    with server(tmp_path, deaf, limits={"cancel_seconds": 0.1}) as client:
        job = submit(client)
        wait_for(client, job, "IN_PROGRESS")
        client.put(path_of(job["cancel_url"]))
        assert wait_for(client, job)["error_type"] == "client_cancelled"


def test_wrong_files_are_a_422_with_one_entry_each(tmp_path):
    detail = [
        {"loc": ["body", "audio_data_url", name], "type": "missing_caption", "msg": "has no caption"} for name in "ab"
    ]
    with server(tmp_path, refuses(detail)) as client:
        job = submit(client)
        status, result = wait_for(client, job), client.get(path_of(job["response_url"]))
    assert status["status"] == "COMPLETED" and status["error"] == "wrong data" and result.status_code == 422
    assert [entry["loc"][-1] for entry in result.json()["detail"]] == ["a", "b"]
    assert all(entry["url"].endswith("/errors#missing_caption") for entry in result.json()["detail"])


def test_a_rank_that_the_model_does_not_allow_is_an_error_of_the_rank(tmp_path):
    detail = [{"loc": ["body"], "type": "RankTooLarge", "msg": "rank must be at most 17"}]
    with server(tmp_path, refuses(detail)) as client:
        job = submit(client)
        wait_for(client, job)
        (entry,) = client.get(path_of(job["response_url"])).json()["detail"]
    assert entry["loc"] == ["body", "rank"] and entry["type"] == "rank_too_large_for_adapter"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory was used up"),
        ("raise SystemExit(3)", "exit code 3"),
        ("pass", "without its files"),
    ],
)
def test_a_worker_that_crashes_ends_its_job_with_an_error_and_the_next_job_runs(tmp_path, script, words):
    with server(tmp_path, script) as client:
        job, other = submit(client), submit(client, rank=2)
        status, result = wait_for(client, job), client.get(path_of(job["response_url"]))
        wait_for(client, other)
    assert (
        result.status_code == 500 and words in result.json()["detail"] and status["error_type"] == "runner_server_error"
    )


def test_a_worker_that_says_nothing_any_more_is_ended(tmp_path):
    with server(tmp_path, "import time; time.sleep(60)", limits={"stall_seconds": 0.2}) as client:
        job = submit(client)
        assert "reported nothing" in wait_for(client, job)["error"]


def test_a_start_time_out_is_a_504_that_clients_do_not_repeat(tmp_path):
    with server(tmp_path, WAITS) as client:
        wait_for(client, submit(client), "IN_PROGRESS")
        job = submit(client, {"x-fal-request-timeout": "0.1"}, rank=2)
        wait_for(client, job)
        result = client.get(path_of(job["response_url"]))
    assert result.status_code == 504 and result.headers["x-fal-request-timeout-type"] == "user"


def test_a_repeated_submit_gives_the_job_of_the_first(tmp_path):
    with server(tmp_path, WAITS) as client:
        first, again, other = submit(client), submit(client), submit(client, rank=2)
    assert first["request_id"] == again["request_id"] != other["request_id"]


def test_a_cancelled_request_may_be_sent_again(tmp_path):
    with server(tmp_path, WAITS) as client:
        first = submit(client)
        client.put(path_of(first["cancel_url"]))
        assert submit(client)["request_id"] != first["request_id"]


def test_low_priority_waits_for_normal(tmp_path):
    with server(tmp_path, WAITS) as client:
        wait_for(client, submit(client), "IN_PROGRESS")
        low, normal = submit(client, {"x-fal-queue-priority": "low"}, rank=2), submit(client, rank=3)
        places = [client.get(path_of(job["status_url"])).json()["queue_position"] for job in (low, normal)]
    assert places == [1, 0]


def test_two_devices_run_two_jobs_at_once(tmp_path):
    with server(tmp_path, WAITS, devices=("cuda:0", "cuda:1")) as client:
        jobs = [submit(client), submit(client, rank=2)]
        for job in jobs:
            wait_for(client, job, "IN_PROGRESS")
        together = [client.get(path_of(job["status_url"])).json()["status"] for job in jobs]
    assert together == ["IN_PROGRESS", "IN_PROGRESS"]


def test_a_run_answers_with_the_output(tmp_path):
    body = {"audio_data_url": "https://example.com/a.zip"}
    with server(tmp_path) as client:
        plain = client.post(f"/run{TRAINER}", json=body)
        by_client = client.post(TRAINER, json=body, headers={"user-agent": "@fal-ai/client/1.10.1 node"})
    assert sorted(plain.json()) == sorted(by_client.json()) == ["config_file", "lora_file"]


def test_every_answer_has_a_request_id(tmp_path):
    with server(tmp_path) as client:
        job = submit(client)
        answers = [client.get("/health"), client.get("/nothing/there"), client.get(path_of(job["status_url"]))]
    assert all(answer.headers["x-fal-request-id"] for answer in answers)
    assert answers[-1].headers["x-fal-request-id"] == job["request_id"]


def test_a_repeated_input_is_looked_up_in_the_store_while_the_device_is_busy(tmp_path):
    with server(tmp_path, FINISHES) as client:
        wait_for(client, submit(client))
    with server(tmp_path, WAITS) as client:
        wait_for(client, submit(client, rank=2), "IN_PROGRESS")
        again = wait_for(client, submit(client), "IN_PROGRESS")
    assert again["logs"][0]["message"].startswith("the same request was answered before")


def test_proxied_requests_go_where_their_target_says(tmp_path):
    def proxied(client, method, url, **more):
        return client.request(method, "/api/fal/proxy", headers={"x-fal-target-url": url}, **more)

    with server(tmp_path) as client:
        body = {"audio_data_url": "https://example.com/a.zip"}
        job = proxied(client, "POST", f"https://queue.fal.run{TRAINER}", json=body).json()
        wait_for(client, job)
        status = proxied(client, "GET", f"https://queue.fal.run{path_of(job['status_url'])}?logs=1").json()
        run = proxied(client, "POST", f"https://fal.run{TRAINER}", json=body).json()
        missing = client.post("/api/fal/proxy")
    assert status["status"] == "COMPLETED" and status["logs"] and "lora_file" in run and missing.status_code == 400


def test_a_job_in_the_queue_survives_a_restart_with_its_id(tmp_path):
    with server(tmp_path, WAITS) as client:
        wait_for(client, submit(client), "IN_PROGRESS")
        queued = submit(client, rank=2)
    with server(tmp_path, FINISHES) as client:
        assert wait_for(client, queued)["status"] == "COMPLETED"
        assert task_of(tmp_path, queued)["recipe"]["rank"] == 2


def test_a_running_job_goes_on_after_a_restart(tmp_path):
    with server(tmp_path, WAITS) as client:
        job = submit(client)
        wait_for(client, job, "IN_PROGRESS")
    with server(tmp_path, FINISHES) as client:
        logs = [line["message"] for line in wait_for(client, job)["logs"]]
    assert "going on where the process of this request stopped" in logs


def test_finished_jobs_answer_after_a_restart(tmp_path):
    with server(tmp_path) as client:
        job = submit(client)
        logs = wait_for(client, job)["logs"]
        result = client.get(path_of(job["response_url"])).json()
    with server(tmp_path) as client:
        assert wait_for(client, job)["logs"] == logs
        assert client.get(path_of(job["response_url"])).json() == result


def test_status_is_answered_from_memory(tmp_path):
    with server(tmp_path, WAITS) as client:
        job = submit(client)
        wait_for(client, job, "IN_PROGRESS")
        client.app.state.door.database.find = None  # any look-up would fail
        begun = time.monotonic()
        for _ in range(20):
            client.get(path_of(job["status_url"]))
    assert time.monotonic() - begun < 2


def test_a_job_that_this_server_cannot_run_ends_with_an_error_and_the_next_runs(tmp_path, monkeypatch):
    with server(tmp_path) as client:
        from pipeline.serve.jobs.job_folder import JobFolder

        write = JobFolder.write_spec
        monkeypatch.setattr(JobFolder, "write_spec", _full_disk)
        job = submit(client)
        wait_for(client, job)
        monkeypatch.setattr(JobFolder, "write_spec", write)
        wait_for(client, other := submit(client, rank=2))
        answers = [client.get(path_of(one["response_url"])) for one in (job, other)]
    assert [answer.status_code for answer in answers] == [500, 200] and "No space" in answers[0].json()["detail"]


def _full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_queue_that_cannot_be_written_for_a_while_loses_no_result(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.setattr("pipeline.serve.jobs.dispatcher._RETRY_SECONDS", 0.01)
    with server(tmp_path) as client:
        database = client.app.state.door.database
        update, failures = database.update, iter(range(3))

        def failing(job, *names):
            if "result" in names and next(failures, None) is not None:
                raise sqlite3.OperationalError("database or disk is full")
            update(job, *names)

        database.update = failing
        job = submit(client)
        wait_for(client, job)
        assert next(failures, None) is None


def test_what_the_server_keeps_in_the_store_is_no_damage_and_no_garbage(tmp_path):
    from typer.testing import CliRunner

    from pipeline.cli import app
    from tests.serving import small_zip, upload

    with server(tmp_path) as client:
        job = submit(client, audio_data_url=upload(client, small_zip()))
        wait_for(client, job)
        result = client.get(path_of(job["response_url"])).json()
        for command in (["verify"], ["status"], ["gc", "--yes", "--older-than", "0d"]):
            done = CliRunner().invoke(app, [*command, "--store", str(tmp_path / "store")])
            assert done.exit_code == 0, done.output
        assert client.get(path_of(result["lora_file"]["url"])).content == b"weights"


def test_a_stream_without_news_is_kept_alive_by_comments(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.serve.http.bodies.KEEP_ALIVE_SECONDS", 0.52)
    with server(tmp_path, WAITS) as client:
        job = submit(client)
        wait_for(client, job, "IN_PROGRESS")
        folder = tmp_path / "store" / "serve" / "jobs" / job["request_id"]
        found = []
        with client.stream("GET", f"{path_of(job['status_url'])}/stream") as answer:
            client.portal.start_task_soon(_release_later, folder / "go")
            found = list(answer.iter_lines())
    assert found.count(": keep-alive") >= 1 and json.loads(found[-2][6:])["status"] == "COMPLETED"


async def _release_later(file):
    import anyio

    await anyio.sleep(0.8)
    file.touch()
