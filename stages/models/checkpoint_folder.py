"""Digests of the components of a checkpoint folder, computed without loading it. Light: standard library only.

A folder in the published layout holds

    model_config.json      sizes of every network
    model.safetensors      transformer, conditioner and autoencoder
    <text encoder>/        a transformers folder: config, weights, tokenizer
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cache.fingerprint import fingerprint
from stages.contract import Weights
from stages.errors import WeightsNotFound
from stages.model_config import ModelConfig
from stages.safetensors_header import (
    CutShort,
    LfsPointer,
    NotSafetensors,
    SafetensorsHeader,
    TooLong,
    check_length,
    read_header,
)

CONFIG_FILE, WEIGHTS_FILE = "model_config.json", "model.safetensors"
PREFIXES = {"autoencoder": "pretransform.model.", "transformer": "model.", "conditioner": "conditioner."}
"""What the names of each component's tensors start with in model.safetensors."""

_READ_BYTES = 1 << 24
_TEXTS = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
"""Files of a text encoder's folder besides its tensors."""
_DOWNLOAD_TEXT_ENCODER = "Download the text encoder's folder again; it is a sub-folder of the model's."
_SPACES = b" \t\r\n"


class DigestLookup(Protocol):
    """Remembers a value computed from a file until that file changes (`cache.digest_cache.DigestCache`)."""

    def get(self, path: Path, what: str) -> str | None: ...
    def put(self, path: Path, what: str, value: str) -> None: ...


def open_folder(model: str, folder: Path, digest_cache: DigestLookup | None = None) -> Weights:
    """Config and component digests of a checkpoint folder.

    Args:
        model: name of the base model the folder is taken for.

    Raises:
        WeightsNotFound: the folder or one of its files is missing or cannot be read.
    """
    config = _read_config(folder)
    try:
        ModelConfig(config).check()
        text_folder, parts = folder / ModelConfig(config).text_encoder_folder, component_configs(config)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        why = f"its {CONFIG_FILE} is not that of a Stable Audio 3 base model ({type(error).__name__}: {error})"
        raise WeightsNotFound(str(folder), why, "Download the folder again, or correct --weights.") from error
    tensors = _digests(_existing(folder / WEIGHTS_FILE), PREFIXES, digest_cache)
    named = {name: fingerprint("component", {"tensors": tensors[name], "config": parts[name]}) for name in PREFIXES}
    named["text_encoder"] = _text_encoder_digest(text_folder, digest_cache)
    return Weights(model=model, folder=folder, config=config, digests=named)


def component_configs(content: Mapping[str, Any]) -> dict[str, Any]:
    """The part of model_config.json that shapes each component, as it enters the component's digest.

    The hub repository of the text encoder is left out: it shapes nothing.
    """
    config = ModelConfig(content)
    conditioners = [
        {**entry, "config": {key: value for key, value in entry["config"].items() if key != "repo_id"}}
        for entry in config.conditioners
    ]
    return {
        "autoencoder": config.autoencoder,
        "transformer": config.diffusion,
        "conditioner": {"configs": conditioners, "cond_dim": content["model"]["conditioning"]["cond_dim"]},
    }


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a safetensors file, from its header alone. Raises WeightsNotFound."""
    return {name: tuple(entry["shape"]) for name, entry in _header(file).tensors.items()}


def file_metadata(file: Path) -> dict[str, str]:
    """The metadata entries of a safetensors file. Raises WeightsNotFound."""
    return _header(file).metadata


def file_digest(file: Path, digest_cache: DigestLookup | None = None) -> str:
    """Digest over name, dtype, shape and bytes of all tensors of a file; without a cache every byte is read.

    Raises:
        WeightsNotFound: the file is cut short or of another format.
    """
    return _digests(file, {"all": ""}, digest_cache)["all"]


def _read_config(folder: Path) -> dict[str, Any]:
    file = _existing(folder / CONFIG_FILE)
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsNotFound(str(file), f"it is not JSON ({error})", "Download the folder again.") from error
    return config


def _existing(file: Path) -> Path:
    """The file itself. Raises WeightsNotFound."""
    if not file.is_file():
        remedy = f"--weights needs a folder with {CONFIG_FILE}, {WEIGHTS_FILE} and the text encoder's folder."
        raise WeightsNotFound(str(file.parent), f"{file.name} is not there", remedy)
    return file


def _header(file: Path) -> SafetensorsHeader:
    if not file.is_file():
        raise WeightsNotFound(str(file), "it is no file", "Download it again.")
    try:
        header = read_header(file)
        check_length(file, header)
    except LfsPointer as error:
        raise WeightsNotFound(str(file), str(error), "Or download it again.") from error
    except (CutShort, TooLong) as error:
        raise WeightsNotFound(str(file), str(error), "Download it again.") from error
    except NotSafetensors as error:
        why = "it is not a safetensors file, or is cut short"
        raise WeightsNotFound(str(file), why, "Download it again.") from error
    return header


def _digests(file: Path, prefixes: Mapping[str, str], digest_cache: DigestLookup | None) -> dict[str, str]:
    """One digest per prefix over (name, dtype, shape, bytes) of its tensors in name order, memoised for this file."""
    what = "tensors:" + ",".join(prefixes.values())
    kept = digest_cache.get(file, what) if digest_cache is not None else None
    if kept is not None:
        known: dict[str, str] = json.loads(kept)
        return known
    header = _header(file)
    digests = {part: _tensors_digest(file, header, prefix) for part, prefix in prefixes.items()}
    if digest_cache is not None:
        digest_cache.put(file, what, json.dumps(digests))
    return digests


def _tensors_digest(file: Path, header: SafetensorsHeader, prefix: str) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        for name in sorted(name for name in header.tensors if name.startswith(prefix)):
            entry = header.tensors[name]
            begin, end = entry["data_offsets"]
            total.update(json.dumps([name.removeprefix(prefix), entry["dtype"], entry["shape"]]).encode())
            stream.seek(header.data_start + begin)
            for block in _blocks(stream, end - begin):
                total.update(block)
    return total.hexdigest()


def _blocks(stream: Any, num_bytes: int) -> Iterator[bytes]:
    """The next `num_bytes` of a file, piece by piece."""
    while num_bytes > 0:
        block = stream.read(min(num_bytes, _READ_BYTES))
        if not block:
            raise WeightsNotFound(stream.name, "it is shorter than its header says", "Download it again.")
        num_bytes -= len(block)
        yield block


def _text_encoder_digest(folder: Path, digest_cache: DigestLookup | None) -> str:
    """Digest over the encoder's tensors (from either file layout), its config and its tokenizer."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        remedy = "The text encoder's folder belongs to the checkpoint: download the whole repository."
        raise WeightsNotFound(str(folder), "it holds no .safetensors file", remedy)
    halves = {"alone": "encoder.", "with decoder": "model.encoder."}
    tensors = [_encoder_tensors(_digests(file, halves, digest_cache)) for file in files]
    texts = {name: hashlib.sha256(content).hexdigest() for name, content in _texts(folder).items()}
    return fingerprint("text encoder", {"tensors": tensors, "files": texts})


def _texts(folder: Path) -> dict[str, bytes]:
    """The encoder's config and tokenizer, by file name, once they are checked to look whole.

    Raises:
        WeightsNotFound: one is missing or damaged. A tokenizer has tens of megabytes: it is not parsed here.
    """
    found = {}
    for name in _TEXTS:
        if not os.path.lexists(folder / name):
            continue
        if not (folder / name).is_file():
            raise WeightsNotFound(str(folder / name), "it is no file", _DOWNLOAD_TEXT_ENCODER)
        found[name] = (folder / name).read_bytes()
        if name.endswith(".json") and not _looks_like_object(found[name]):
            raise WeightsNotFound(str(folder / name), "it is damaged: no JSON object", _DOWNLOAD_TEXT_ENCODER)
    if "config.json" not in found or not found.keys() & {"tokenizer.json", "tokenizer.model"}:
        missing = "tokenizer.json" if "config.json" in found else "config.json"
        raise WeightsNotFound(str(folder), f"{missing} is not there", _DOWNLOAD_TEXT_ENCODER)
    return found


def _looks_like_object(content: bytes) -> bool:
    return content.lstrip(_SPACES)[:1] == b"{" and content.rstrip(_SPACES)[-1:] == b"}"


def _encoder_tensors(found: Mapping[str, str]) -> str:
    """The digest of whichever layout holds tensors."""
    nothing = hashlib.sha256().hexdigest()
    return found["alone"] if found["alone"] != nothing else found["with decoder"]
