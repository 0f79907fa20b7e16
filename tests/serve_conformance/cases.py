"""One case with fal-client as it was released: python cases.py CASE BASE MODE [EXTRA]; prints one JSON document.

Runs in the interpreter that has the client; imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
import time

name, base, mode, *rest = sys.argv[1:]
extra = rest[0] if rest else ""
os.environ["FAL_KEY"] = "x"
if mode == "environment":  # read when the client is imported
    host = base.split("://")[1]
    os.environ |= {"FAL_RUN_HOST": f"{host}/run", "FAL_QUEUE_RUN_HOST": host}

import fal_client  # noqa: E402
import fal_client.client as constants  # noqa: E402

if mode == "constants":
    constants.RUN_URL_FORMAT, constants.QUEUE_URL_FORMAT = f"{base}/run/", f"{base}/"
    constants.REST_URL = constants.CDN_URL = base

APP, DATA = "fal-ai/stable-audio-3-trainer", {"audio_data_url": "https://example.com/a.zip"}


def told(update):
    """A status as JSON; the names are those of the JavaScript client."""
    names = {"Queued": "IN_QUEUE", "InProgress": "IN_PROGRESS", "Completed": "COMPLETED"}
    found = {"status": names[type(update).__name__], **vars(update)}
    return {key: value for key, value in found.items() if isinstance(value, (str, int, list, dict, type(None)))}


def caught(function, *args, **options):
    """The value, or the error."""
    try:
        return {"value": function(*args, **options)}
    except fal_client.client.FalClientHTTPError as error:
        body = error.response.json()
        detail = body["detail"] if isinstance(body.get("detail"), list) else []
        fields = {entry["loc"][-1]: 1 for entry in detail}
        return {"status": error.status_code, "body": body, "message": str(error), "fields": fields, "kind": "http"}
    except Exception as error:  # told to the test
        return {"kind": type(error).__name__, "message": str(error), "status": getattr(error, "status_code", None)}


def subscribed(fields, **options):
    updates = []
    options = {"with_logs": True, "on_queue_update": lambda update: updates.append(told(update))} | options
    output = fal_client.subscribe(APP, DATA | fields, **options)
    return {"output": output, "updates": updates}


def ended(request_id):
    while not isinstance(found := fal_client.status(APP, request_id), fal_client.Completed):
        time.sleep(0.05)
    return found


def by_hand():
    handle = fal_client.submit(APP, DATA)
    first = told(handle.status(with_logs=True))
    output = handle.get()
    return {"first": first, "status": told(fal_client.status(APP, handle.request_id, with_logs=True)), "output": output}


def cancel():
    states = {}
    ids = [fal_client.submit(APP, DATA | {"seed": 1, "rank": rank}).request_id for rank in (1, 2, 3)]
    running, other, queued = ids
    while not isinstance(fal_client.status(APP, running), fal_client.InProgress):
        pass
    for state, id in {
        "queued": queued,
        "running": running,
        "finished": running,
        "unknown": "0",
        "other": other,
    }.items():
        states[state] = caught(fal_client.cancel, APP, id).get("status") or "ok"
        if state != "unknown":
            ended(id)
    return states | {"result": caught(fal_client.result, APP, running)["status"]}


def time_out():
    ids = []
    error = caught(fal_client.subscribe, APP, DATA | {"seed": 1}, client_timeout=1.5, on_enqueue=ids.append)
    return {"error": error, "status": told(ended(ids[0])), "id": ids[0]}


def upload():
    import httpx

    content = b"\x07" * int(extra)
    if mode == "fallback":  # the CDN's host is unreachable: the client goes to the other repository
        constants.REST_URL, constants.CDN_URL = base, "http://127.0.0.1:9"
    url = fal_client.upload(content, "application/zip", "clips.zip")
    found = httpx.get(url).content
    return {"url": url, "bytes": len(found), "same": found == content}


def webhook():
    seed, url = extra.split(" ")
    return fal_client.submit(APP, DATA | {"seed": int(seed)}, webhook_url=url).request_id


def duplicate():
    return [fal_client.submit(APP, DATA | {"seed": 5, "rank": 7}).request_id for _ in range(3)]


NULLS = dict.fromkeys(("model", "rank", "duration", "include", "seed", "pre_encode")) | {"unknown": 1}
CASES = {
    "subscribe": lambda: subscribed({}),
    "logs_off": lambda: subscribed({}, with_logs=False),
    "by_hand": by_hand,
    "violation": lambda: caught(subscribed, json.loads(extra)),
    "nulls": lambda: subscribed(NULLS),
    "failing": lambda: caught(subscribed, {"seed": int(extra)}),
    "cancel": cancel,
    "time_out": time_out,
    "long": lambda: subscribed({"seed": 5}),
    "duplicate": duplicate,
    "run": lambda: {"output": fal_client.run(APP, DATA)},
    "upload": upload,
    "stream": lambda: [told(update) for update in fal_client.submit(APP, DATA).iter_events(with_logs=True)],
    "encode_file": lambda: subscribed({"audio_data_url": fal_client.encode(b"zip", "application/zip")}),
    "webhook": webhook,
}
print(json.dumps(CASES[name](), default=str))
