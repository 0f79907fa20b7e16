"""Cases of the autoencoder: `same_*` and the pre-encoding folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.load_weights import load_autoencoder
from stages.models.nets.autoencoder.autoencoder import Autoencoder, DecodeNoise
from tests.parity.frame import Case, Comparison, Family, checks, compare, exact, failure, graded, worst_error


def _autoencoder(family: Family) -> Autoencoder:
    return family.once("autoencoder", lambda: load_autoencoder(family.weights))


def _whole_frames(autoencoder: Autoencoder, audio_BAL: Tensor) -> Tensor:
    """Audio as the reference prepares it: zero-padded to whole latent frames."""
    return F.pad(audio_BAL, (0, -audio_BAL.shape[-1] % autoencoder.downsampling_ratio))


@checks(r"same_encode_(short|batch)")
def encoded(family: Family, case: Case) -> Iterator[Comparison]:
    autoencoder, audio = _autoencoder(family), case.tensors["audio"]
    whole = _whole_frames(autoencoder, audio)
    made = {
        "latents_raw": lambda: autoencoder.encode(audio),
        "latents_api": lambda: autoencoder.encode(whole),
        "latents_model_pretransform": lambda: autoencoder.encode_chunked(audio),
        "patched": lambda: autoencoder.patched(audio),
    }
    for name in case.entry["outputs"]:
        yield compare(case, name, made[name]())


@checks(r"same_encode_chunked")
def encoded_in_chunks(family: Family, case: Case) -> Iterator[Comparison]:
    autoencoder, audio = _autoencoder(family), case.tensors["audio"]
    sizes = case.params["chunk_size"], case.params["overlap"]
    whole = _whole_frames(autoencoder, audio)
    yield compare(case, "latents_raw", autoencoder.encode_chunked(audio, *sizes))
    yield compare(case, "latents_api", autoencoder.encode_chunked(whole, *sizes))
    yield compare(case, "latents_unchunked_api", autoencoder.encode(whole))


@checks(r"same_encode_chunked_default")
def encoded_in_default_chunks(family: Family, case: Case) -> Iterator[Comparison]:
    autoencoder, period = _autoencoder(family), case.tensors["audio_period"]
    num_samples = case.params["samples"]
    audio = period.repeat(1, 1, -(-num_samples // period.shape[-1]))[..., :num_samples]
    yield compare(case, "latents_chunked", autoencoder.encode_chunked(audio))
    yield compare(case, "latents_unchunked", autoencoder.encode(audio))


@checks(r"same_encode_noisy")
def encoded_with_noise(family: Family, case: Case) -> Iterator[Comparison]:
    autoencoder = _autoencoder(family)
    (name,) = case.entry["outputs"]
    yield compare(case, name, autoencoder.encode(case.tensors["audio"], case.tensors["token_noise"]))


@checks(r"same_decode")
def decoded(family: Family, case: Case) -> Iterator[Comparison]:
    autoencoder, latents = _autoencoder(family), case.tensors["latents"]
    yield compare(case, "audio", autoencoder.decode(latents))
    yield compare(case, "bottleneck_out", autoencoder.bottleneck.decode(latents, None))


@checks(r"same_decode_chunked")
def decoded_in_chunks(family: Family, case: Case) -> Iterator[Comparison]:
    sizes = case.params["chunk_size"], case.params["overlap"]
    yield compare(case, "audio", _autoencoder(family).decode_chunked(case.tensors["latents"], *sizes))


@checks(r"same_decode_chunked_default")
def decoded_in_default_chunks(family: Family, case: Case) -> Iterator[Comparison]:
    autoencoder, latents = _autoencoder(family), case.tensors["latents"]
    for way, audio in (("chunked", autoencoder.decode_chunked(latents)), ("unchunked", autoencoder.decode(latents))):
        yield compare(case, f"{way}_strided", audio[..., :: case.params["stride"]])
        yield compare(case, f"{way}_length", torch.tensor(audio.shape[-1]))
        for start in case.params["slices"]:
            if case.has(f"{way}_at_{start}"):
                yield compare(case, f"{way}_at_{start}", audio[..., start : start + case.params["slice_len"]])


@checks(r"same_decode_noisy")
def decoded_with_noise(family: Family, case: Case) -> Iterator[Comparison]:
    noise = DecodeNoise(bottleneck=case.tensors["bottleneck_noise"], tokens=case.tensors["token_noise"])
    yield compare(case, "audio", _autoencoder(family).decode(case.tensors["latents"], noise))


@checks(r"file:preencode")
def clips_encoded_as_the_pre_encoding_tool_does(family: Family, case: Case) -> Iterator[Comparison]:
    """Latents of whole clips, trimmed and padded, against the tool's `.npy` files.

    The index states no tolerance for them; the largest of this family's encoding cases is used.
    """
    autoencoder, folder = _autoencoder(family), Path(case.params["folder"])
    outputs = [entry["outputs"] for entry in family.index["cases"] if entry["case"].startswith("same_encode")]
    strict = max(rules["atol_strict"] for rules_of in outputs for rules in rules_of.values() if "atol_strict" in rules)
    names = sorted(path for way in ("nopad", "pad_batch2") for path in (folder / way).glob("*.json"))
    if not names:
        yield failure("latents", "no pre-encoded clips found")
    for path in names:
        about = json.loads(path.read_text("utf-8"))
        recorded = torch.from_numpy(np.load(path.with_suffix(".npy")))
        audio = _stereo(folder / "wavs" / about["relpath"])
        ours = autoencoder.encode_clip(audio)
        num_valid = sum(about["padding_mask"])
        yield exact(f"{path.parent.name}/{path.stem} frames", torch.tensor(ours.shape[-1]), torch.tensor(num_valid))
        yield graded(f"{path.parent.name}/{path.stem}", worst_error(ours, recorded[:, :num_valid]), strict)


def _stereo(path: Path) -> Tensor:
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()).expand(2, -1)
