"""Encoding speed: of the network alone, of the encode stage, and from a zip to shards.

    python tests/benchmarks/bench_encode.py [CLIPS] [SECONDS] [PRECISION]

SAME-S and SAME-L at full size, random, on a GPU; the autoencoder of tiny-base on a CPU. All figures are seconds
of sound per second (x realtime). Prompts are embedded by tiny-base's text encoder, which takes little time.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

from cache.digest_cache import DigestCache
from stages import catalogue
from stages.contract import Artifact, Inputs, Resources, Weights, Workspace
from stages.encode.batching import batches_of, max_batch_frames
from stages.encode.run import encode
from stages.encode.stage import EncodeParams
from stages.ingest.run import ingest
from stages.ingest.source.listing import open_source
from stages.ingest.stage import IngestParams
from stages.models.device import dtype_named
from stages.models.families import tiny
from stages.models.load_weights import AUTOENCODER, load_autoencoder
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.autoencoder.fused_blocks import use_fused_blocks
from stages.precision import DTYPE_NAMES

RATE = 44100
FULL_SIZE = {"SAME-S": "small-music-base", "SAME-L": "medium-base"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def zipped(path: Path, count: int, seconds: float) -> Path:
    """A zip of clips of one sound at falling levels, so that no two are the same bytes, with captions."""
    time_X = np.arange(round(seconds * RATE)) / RATE
    noise_XA = np.random.default_rng(0).normal(0, 0.02, (time_X.size, 2))
    music_XA = (noise_XA + 0.3 * np.sin(2 * np.pi * 220 * time_X * (1 + 0.01 * np.sin(time_X)))[:, None]).astype("<f4")

    def wav(number: int) -> bytes:
        held = BytesIO()
        soundfile.write(held, music_XA * np.float32(0.998**number), RATE, format="WAV", subtype="PCM_16")
        return held.getvalue()

    with zipfile.ZipFile(path, "w") as archive, ThreadPoolExecutor(8) as threads:
        for start in range(0, count, 16):
            numbers = range(start, min(start + 16, count))
            for number, content in zip(numbers, threads.map(wav, numbers), strict=True):
                archive.writestr(f"clip{number}.wav", content)
                archive.writestr(f"clip{number}.txt", f"sound number {number % 7}")
    return path


def checkpoint(folder: Path, model: str) -> Weights:
    """A checkpoint folder with a random autoencoder of this model, and tiny-base's text encoder."""
    shutil.copytree(tiny.FOLDER, folder)
    if model != "tiny-base":
        config = catalogue.family_of(model).model_config(model)
        config["model"]["conditioning"] = tiny.model_config("tiny-base")["model"]["conditioning"]
        (folder / "model_config.json").write_text(json.dumps(config), "utf-8")
        save_file(random_autoencoder(config), folder / "model.safetensors")
    config = json.loads((folder / "model_config.json").read_text("utf-8"))
    return Weights(model=model, folder=folder, config=config, digests={"autoencoder": model, "text_encoder": "tiny"})


def random_autoencoder(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random tensors of the autoencoder, scaled so that activations keep unit variance."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Autoencoder(config).state_dict().items()}
    found = {}
    for name, shape in shapes.items():
        if name.endswith("inv_freq"):
            found[name] = 10000.0 ** -(torch.arange(0, 2 * shape[0], 2) / (2 * shape[0]))
        elif len(shape) > 1 and "bottleneck" not in name:
            found[name] = torch.randn(shape, device=DEVICE).mul_(shape[1:].numel() ** -0.5).cpu()
        else:
            found[name] = torch.full(shape, 0.0 if name.endswith(("beta", "bias")) else 1.0)
    return {AUTOENCODER + name: tensor for name, tensor in found.items()}


def rate(call: Callable[[], object], seconds: float) -> float:
    """Multiple of real time of a call that encodes `seconds` of sound; median of five, after a warm-up."""
    call()
    taken = []
    for _ in range(5):
        synchronize()
        begun = time.perf_counter()
        call()
        synchronize()
        taken.append(time.perf_counter() - begun)
    return seconds / statistics.median(taken)


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def network(name: str, weights: Weights, precision: str, count: int, seconds: float) -> None:
    """Measures the network alone, with its input already on the device."""
    audio = torch.randn(2, round(seconds * RATE), device=DEVICE) / 8
    exact = load_autoencoder(weights, DEVICE).encode_clip(audio).float()
    for dtype in dict.fromkeys((torch.float32, dtype_named(precision))):
        encoder = load_autoencoder(weights, DEVICE, dtype)
        measured(name, "", encoder, audio, count, exact)
        if use_fused_blocks(encoder.encoder.downsampling, print):
            measured(name, ", fused", encoder, audio, count, exact)


def measured(name: str, how: str, encoder: Autoencoder, audio: torch.Tensor, count: int, exact: torch.Tensor) -> None:
    """Measures batches of one clip, and of as many clips as the stage uses."""
    padded = encoder.num_frames(audio.shape[1]) + encoder.silence_frames
    most = max_batch_frames(encoder, DEVICE, fused=bool(how))
    for batch in dict.fromkeys((1, len(batches_of([padded] * count, most)[0]))):
        clips = [audio] * batch
        found = encoder.encode_clips(clips)[-1].float()
        speed = rate(lambda clips=clips: encoder.encode_clips(clips), batch * audio.shape[1] / RATE)
        what = f"network, {str(encoder.dtype)[6:]}, {batch} at once{how}"
        differs = float((found - exact).norm() / exact.norm())
        print(f"{name:<8} {what:<44} {speed:>10,.1f} x   differs from float32 by {differs:.1e}", flush=True)


def from_zip(name: str, weights: Weights, precision: str, data: Path, place: Path) -> None:
    """Measures ingest and encode as the command line runs them, in a new store."""
    resources = Resources(device=DEVICE.type)
    begun = time.perf_counter()
    source = open_source(data, DigestCache(place / "digests.sqlite"))
    looked = time.perf_counter()
    work = workspace(place / "ingest", place / "shared", resources)
    params = IngestParams(native_samples=weights.sizes.max_samples, max_clips=10**6)
    facts = ingest(Inputs(source=source), params, work).facts
    ingested = time.perf_counter()
    artifact = Artifact(stage="ingest", fingerprint="benchmark", directory=work.directory, facts=facts)
    encode_params = EncodeParams(model=weights.model, compute_dtype=DTYPE_NAMES[precision])
    inputs = Inputs(artifacts={"ingest": artifact}, weights=weights)
    encode(inputs, encode_params, workspace(place / "encode", place / "shared", resources))
    encoded = time.perf_counter()
    sound = float(facts["total_seconds"])
    for what, start, stop in (
        ("digests of the zip", begun, looked),
        ("ingest", looked, ingested),
        (f"encode stage, {DTYPE_NAMES[precision]}", ingested, encoded),
        ("zip to shards", begun, encoded),
    ):
        print(f"{name:<8} {what:<44} {sound / (stop - start):>10,.1f} x   {stop - start:.2f} s", flush=True)


def workspace(directory: Path, shared: Path, resources: Resources) -> Workspace:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return Workspace(directory=directory, shared=shared, resources=resources, say=print)


def main() -> None:
    on_gpu = DEVICE.type == "cuda"
    count = int(sys.argv[1]) if len(sys.argv) > 1 else (128 if on_gpu else 8)
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else (120.0 if on_gpu else 20.0)
    precision = sys.argv[3] if len(sys.argv) > 3 else ("bf16" if on_gpu else "fp32")
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{device}, {os.cpu_count()} cores, torch {torch.__version__}; {count} clips of {seconds:g} s, 44.1 kHz WAV")
    with tempfile.TemporaryDirectory() as named:
        place = Path(named)
        data = zipped(place / "clips.zip", count, seconds)
        for name, model in (FULL_SIZE if on_gpu else {"SAME": "tiny-base"}).items():
            weights = checkpoint(place / model, model)
            network(name, weights, precision, count, seconds)
            from_zip(name, weights, precision, data, place / f"store-{model}")
            shutil.rmtree(place / f"store-{model}")


if __name__ == "__main__":
    main()
