"""Uploads of both clients, and downloads with ranges."""

from __future__ import annotations

import pytest

from tests.serving import path_of, server, small_zip, submit, task_of, upload, wait_for


def test_uploaded_bytes_come_back_from_their_address(tmp_path):
    with server(tmp_path) as client:
        url = upload(client, b"0123456789")
        assert client.get(path_of(url)).content == b"0123456789"


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [("bytes=2-4", 206, b"234"), ("bytes=-3", 206, b"789"), ("bytes=8-", 206, b"89"), ("bytes=20-", 416, None)],
)
def test_a_range_of_a_file_can_be_asked_for(tmp_path, asked, status, content):
    with server(tmp_path) as client:
        answer = client.get(path_of(upload(client, b"0123456789")), headers={"range": asked})
    assert answer.status_code == status and content in (None, answer.content)


def test_an_uploaded_zip_is_what_the_training_reads(tmp_path):
    with server(tmp_path) as client:
        job = submit(client, audio_data_url=upload(client, small_zip()))
        wait_for(client, job)
        path = task_of(tmp_path, job)["recipe"]["audio_data_url"]
    assert path.endswith("/clips.zip") and open(path, "rb").read() == small_zip()  # noqa: SIM115, PTH123


def test_a_zip_in_a_data_address_is_kept_as_a_file(tmp_path):
    import base64

    with server(tmp_path) as client:
        data = "data:application/zip;base64," + base64.b64encode(small_zip()).decode()
        job = submit(client, audio_data_url=data)
        wait_for(client, job)
        path = task_of(tmp_path, job)["recipe"]["audio_data_url"]
    assert open(path, "rb").read() == small_zip()  # noqa: SIM115, PTH123


def test_parts_are_joined_by_their_numbers_and_the_callers_list_is_not_trusted(tmp_path):
    with server(tmp_path) as client:
        body = {"file_name": "a.zip", "content_type": "application/zip"}
        begun = client.post("/storage/upload/initiate-multipart", json=body).json()
        target = path_of(begun["upload_url"])
        for number in (11, *range(10, 0, -1)):
            answer = client.put(f"{target}/{number}", content=bytes([number]))
            assert answer.json()["partNumber"] == number and answer.json()["etag"]
        assert client.post(f"{target}/complete", json={"parts": [{}, {}]}).status_code == 200
        assert client.get(path_of(begun["file_url"])).content == bytes(range(1, 12))


def test_a_missing_part_is_named(tmp_path):
    with server(tmp_path) as client:
        begun = client.post("/storage/upload/initiate-multipart", json={"file_name": "a.zip"}).json()
        for number in (1, 3):
            client.put(f"{path_of(begun['upload_url'])}/{number}", content=b"x")
        answer = client.post(f"{path_of(begun['upload_url'])}/complete", json={})
        gone = client.get(path_of(begun["file_url"]))
    assert answer.status_code == 400 and "part 2" in answer.json()["detail"] and gone.status_code == 404


def test_a_complete_upload_is_not_replaced_but_may_be_repeated(tmp_path):
    with server(tmp_path) as client:
        begun = client.post("/storage/upload/initiate", json={"file_name": "a.zip"}).json()
        answers = [client.put(path_of(begun["upload_url"]), content=content) for content in (b"a", b"a", b"b")]
        assert client.get(path_of(begun["file_url"])).content == b"a"
    assert [answer.status_code for answer in answers] == [200, 200, 400]


def test_the_python_clients_token_uploads_whole_files_and_parts(tmp_path):
    with server(tmp_path) as client:
        token = client.post("/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()
        headers = {"authorization": f"{token['token_type']} {token['token']}", "x-fal-file-name": "b.zip"}
        whole = client.post("/files/upload", content=b"whole", headers=headers).json()["access_url"]
        begun = client.post("/files/upload/multipart", headers=headers).json()
        parts = f"{path_of(begun['access_url'])}/multipart/{begun['uploadId']}"
        etags = [client.put(f"{parts}/{n}", content=bytes([n]), headers=headers).headers["etag"] for n in (2, 1)]
        client.post(f"{parts}/complete", json={"parts": []}, headers=headers)
        contents = [client.get(path_of(url)).content for url in (whole, begun["access_url"])]
    assert contents == [b"whole", b"\x01\x02"] and all(etags) and token["expires_at"].endswith("+00:00")


def test_old_uploads_and_jobs_are_removed_with_their_files(tmp_path):
    with server(tmp_path, limits={"keep_days": 0.0}) as client:
        url = upload(client, b"x")
        job = submit(client)
        wait_for(client, job)
        client.portal.call(client.app.state.door.clean)
        found = [client.get(path_of(url)).status_code, client.get(path_of(job["status_url"])).status_code]
        left = list((tmp_path / "store" / "serve" / "jobs").iterdir())
    assert found == [404, 404] and left == []


def test_a_file_is_known_under_each_name_of_the_server(tmp_path):
    with server(tmp_path) as client:
        url = upload(client, small_zip()).replace("127.0.0.1", "localhost:8765")
        job = submit(client, audio_data_url=url)
        wait_for(client, job)
        assert task_of(tmp_path, job)["recipe"]["audio_data_url"].endswith("/clips.zip")
