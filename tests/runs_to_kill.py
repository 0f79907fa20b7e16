"""A process with torch and the networks loaded that forks one run per request, to be killed: `python runs_to_kill.py`.

One JSON object per line on stdin: `root` and `data` of the run, `format` of its latents, its `last` stage (encode if
not given), other `flags`, and how it ends:

    {}                    it comes to its end
    {"after": 0.3}        SIGKILL by the parent after so many seconds
    {"at": 17}            SIGKILL by itself at its 17th fsync, rename, link or removal
    {"fsize": 5000}       no file may grow beyond so many bytes, as if the disk were full

One line back: how it ended, what it said, how many such calls it made. Clips that go through the autoencoder are noted
by their length in `<root>/encoded.txt`, one line each, written before they are encoded.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MARKS = ("fsync", "replace", "rename", "link", "unlink")
ITEMS_PER_SHARD = 2


def prepare() -> None:
    """Load everything once, make shards tiny and count what is encoded."""
    import pyarrow
    import torch
    import transformers

    import pipeline.execution.runner
    import pipeline.report
    import pipeline.request.recipe
    import stages.encode.encode_latents as latents
    import stages.encode.prompts as prompts
    import stages.encode.run
    import stages.ingest.run
    import stages.train.run
    from cache.shard_pool import shard_ranges
    from cache.shards import formats, load
    from stages.models.nets.autoencoder.autoencoder import Autoencoder

    pyarrow.set_cpu_count(1)
    assert (
        pipeline
        and stages.ingest.run
        and stages.train.run
        and transformers.AutoTokenizer
        and [load(name) for name in formats()]
    )
    pipeline.request.recipe.read_recipe("clips.zip", {"model": "tiny-base"})
    torch.set_num_threads(1)
    latents.shard_ranges = prompts.shard_ranges = partial(shard_ranges, max_items=ITEMS_PER_SHARD)
    encode_clips = Autoencoder.encode_clips

    def noting(self: Any, clips: Any, *args: Any, **more: Any) -> Any:
        handle = os.open("encoded.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, "".join(f"{clip.shape[-1]}\n" for clip in clips).encode())
        os.close(handle)
        return encode_clips(self, clips, *args, **more)

    Autoencoder.encode_clips = noting


def run(request: dict[str, Any], answer: int) -> int:
    """Run up to the last stage in this process."""
    from pipeline.cli_errors import reported_errors
    from pipeline.execution.runner import run_until
    from pipeline.report import Report
    from pipeline.request.recipe import read_recipe

    os.chdir(request["root"])
    calls = count_marks(request.get("at"))
    if "fsize" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], resource.RLIM_INFINITY))
    flags = {"model": "tiny-base", "store": "artifacts", "workers": 1, "threads": 1, "device": "cpu"}
    flags |= {"latent_format": request["format"], **request.get("flags", {})}
    code = 0
    try:
        with reported_errors():
            run_until(request.get("last", "encode"), read_recipe(request["data"], flags), Report())
    except SystemExit as error:
        code = int(error.code or 0)
    os.write(answer, str(calls[0]).encode())
    return code


def count_marks(deadly: int | None) -> list[int]:
    """Count the calls that make work durable (fsync, rename); kill this process at the n-th."""
    calls = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)

        return call

    for name in MARKS:
        setattr(os, name, counted(getattr(os, name)))
    return calls


def forked(request: dict[str, Any]) -> dict[str, Any]:
    """Fork one run, kill it as requested, and return how it ended."""
    reading, writing = os.pipe()
    heard, said = os.pipe()  # no file: a full disk must not keep a run from saying so
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.dup2(said, 2)
            code = run(request, writing)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    os.close(said)
    begun = time.monotonic()
    if "after" in request and not select.select([reading], [], [], request["after"])[0]:
        os.kill(pid, signal.SIGKILL)
    words = drained(heard).decode("utf-8", "replace")
    calls = drained(reading)
    _, status = os.waitpid(pid, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return {"code": code, "calls": int(calls or 0), "said": words[-4000:], "seconds": time.monotonic() - begun}


def drained(pipe: int) -> bytes:
    """Everything written to a pipe until its other end is closed."""
    parts = []
    while part := os.read(pipe, 65536):
        parts.append(part)
    os.close(pipe)
    return b"".join(parts)


def main() -> None:
    """Answer requests until stdin ends."""
    prepare()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
