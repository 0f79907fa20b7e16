"""A server whose trainings are small scripts; what each does is said by the request's seed.

    python -m tests.serve_conformance.fake_server STORE PORT [tls]

seed 0: ends after a few lines; 1: goes on until it is cancelled; 2: wrong files; 3: a rank that is too large;
4: crashes; 5: a few seconds, goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.serve.jobs import dispatcher
from pipeline.serve.server import run
from pipeline.serve.settings import Settings

WORK = """
import json, os, pathlib, sys, time
seed = int(sys.argv[1])
def step(done, total):
    event = {"event": "progress", "stage": "train", "done": done, "total": total, "loss": 2.0}
    print(json.dumps(event), file=sys.stderr, flush=True)
def fails(detail):
    print(json.dumps({"detail": detail, "message": "wrong data"})); sys.exit(1)
if seed == 1:
    pathlib.Path("pid.work").write_text(str(os.getpid()))
    step(1, 1000); time.sleep(600)
wrong = {"type": "missing_caption", "msg": "has no caption"}
if seed == 2: fails([wrong | {"loc": ["body", "audio_data_url", name]} for name in ("a.wav", "b.wav")])
if seed == 3: fails([{"loc": ["body"], "type": "RankTooLarge", "msg": "rank must be at most 17"}])
if seed == 4: os.kill(os.getpid(), 9)
state = pathlib.Path("done")
for done in range(int(state.read_text()) if state.exists() else 0, 10):
    open("steps", "a").write(str(done) + " ")
    step(done + 1, 10); time.sleep(0.3 if seed == 5 else 0.05)
    state.write_text(str(done + 1))
for name in ("safetensors", "json"): pathlib.Path("output/adapter." + name).write_text("weights")
"""


def spec(job: Any, folder: Any, settings: Any, device: str, *, only_if_stored: bool) -> dict[str, Any]:
    """A script in place of the command line."""
    folder.root.mkdir(parents=True, exist_ok=True)
    seed = str(job.task["recipe"].get("seed", 0))
    return {"commands": [[sys.executable, "-S", "-c", WORK, seed]], "gate": [], "environment": {}}


def main() -> None:
    """Serve until killed."""
    dispatcher.spec_of = spec
    store, port, *tls = sys.argv[1:]
    settings = Settings(store=Path(store).absolute(), port=int(port), allow_private=True, devices=("auto", "second"))
    run(settings, own_certificate=bool(tls))


if __name__ == "__main__":
    main()
