"""A checkpoint folder in the published layout, looked at without loading it. Light: standard library only.

model_config.json      sizes of every network
model.safetensors      transformer, conditioner and autoencoder
<text encoder>/        a transformers folder: config, weights, tokenizer
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cache.fingerprint import fingerprint
from stages.contract import Weights
from stages.errors import WeightsNotFound

PREFIXES = {"autoencoder": "pretransform.model.", "transformer": "model.", "conditioner": "conditioner."}
"""Which tensors of model.safetensors belong to which component."""

_READ_BYTES = 1 << 24


class Memo(Protocol):
    """Remembers what was computed from a file until that file changes (`cache.digest_memo.DigestMemo`)."""

    def recall(self, path: Path, what: str) -> str | None: ...
    def remember(self, path: Path, what: str, value: str) -> None: ...


def open_folder(model: str, folder: Path, memo: Memo | None = None) -> Weights:
    """Name the components of a checkpoint folder by their content.

    Raises:
        WeightsNotFound: the folder or one of its files is not there or cannot be read.
    """
    config = _read_config(folder)
    try:
        text_folder, parts = folder / text_encoder_subfolder(config), component_configs(config)
    except (KeyError, TypeError, AttributeError) as error:
        why = f"its model_config.json is not that of a Stable Audio 3 base model ({type(error).__name__}: {error})"
        raise WeightsNotFound(str(folder), why, "Download the folder again, or mend --weights.") from error
    tensors = _digests(_present(folder / "model.safetensors"), PREFIXES, memo)
    named = {name: fingerprint("component", {"tensors": tensors[name], "config": parts[name]}) for name in PREFIXES}
    named["text_encoder"] = _text_encoder_digest(text_folder, memo)
    return Weights(model=model, folder=folder, config=config, digests=named)


def component_configs(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of model_config.json that shapes each component; where a text encoder comes from shapes nothing."""
    model = config["model"]
    conditioners = [
        {**entry, "config": {key: value for key, value in entry["config"].items() if key != "repo_id"}}
        for entry in model["conditioning"]["configs"]
    ]
    return {
        "autoencoder": model["pretransform"]["config"],
        "transformer": model["diffusion"],
        "conditioner": {"configs": conditioners, "cond_dim": model["conditioning"]["cond_dim"]},
    }


def text_encoder_subfolder(config: Mapping[str, Any]) -> str:
    """Folder of the text encoder, as the prompt conditioner names it."""
    for entry in config["model"]["conditioning"]["configs"]:
        if entry["type"] == "t5gemma":
            return str(entry["config"].get("subfolder", "t5gemma-b-b-ul2"))
    raise WeightsNotFound(
        "model_config.json", "it names no t5gemma conditioner", "Only Stable Audio 3 base models can be trained."
    )


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from the header alone: no tensor is read."""
    return {name: tuple(entry["shape"]) for name, entry in _header(file)[0].items()}


def file_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself in its header."""
    with file.open("rb") as stream:
        lead = stream.read(8)
        entries = json.loads(stream.read(struct.unpack("<Q", lead)[0])) if _header(file) else {}
    found: dict[str, str] = entries.get("__metadata__", {})
    return found


def file_digest(file: Path) -> str:
    """Over name, dtype, shape and bytes of all tensors of a file, read anew. WeightsNotFound when it is cut."""
    return _digests(file, {"all": ""}, None)["all"]


def _read_config(folder: Path) -> dict[str, Any]:
    file = _present(folder / "model_config.json")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsNotFound(str(file), f"it is not JSON ({error})", "Download the folder again.") from error
    return config


def _present(file: Path) -> Path:
    if not file.is_file():
        remedy = "--weights wants a folder with model_config.json, model.safetensors and the text encoder's folder."
        raise WeightsNotFound(str(file.parent), f"{file.name} is not there", remedy)
    return file


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Tensor entries by name, and where their bytes begin (the safetensors layout: u64 length, JSON, data)."""
    with file.open("rb") as stream:
        lead = stream.read(8)
        try:
            length = struct.unpack("<Q", lead)[0]
            entries = json.loads(stream.read(length)) if length < 1 << 28 else None
        except (struct.error, ValueError):
            entries = None
    if not isinstance(entries, dict):
        raise WeightsNotFound(str(file), "it is not a safetensors file, or is cut short", "Download it again.")
    entries.pop("__metadata__", None)
    return entries, 8 + length


def _digests(file: Path, prefixes: Mapping[str, str], memo: Memo | None) -> dict[str, str]:
    """One digest per prefix over (name, dtype, shape, bytes) of its tensors in name order, remembered for this file."""
    what = "tensors:" + ",".join(prefixes.values())
    kept = memo.recall(file, what) if memo is not None else None
    if kept is not None:
        found: dict[str, str] = json.loads(kept)
        return found
    entries, start = _header(file)
    found = {part: _tensors_digest(file, entries, start, prefix) for part, prefix in prefixes.items()}
    if memo is not None:
        memo.remember(file, what, json.dumps(found))
    return found


def _tensors_digest(file: Path, entries: Mapping[str, Any], start: int, prefix: str) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        for name in sorted(name for name in entries if name.startswith(prefix)):
            entry = entries[name]
            begin, end = entry["data_offsets"]
            total.update(json.dumps([name.removeprefix(prefix), entry["dtype"], entry["shape"]]).encode())
            stream.seek(start + begin)
            for block in _blocks(stream, end - begin):
                total.update(block)
    return total.hexdigest()


def _blocks(stream: Any, num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        block = stream.read(min(num_bytes, _READ_BYTES))
        if not block:
            raise WeightsNotFound(stream.name, "it is shorter than its header says", "Download it again.")
        num_bytes -= len(block)
        yield block


def _text_encoder_digest(folder: Path, memo: Memo | None) -> str:
    """The encoder half's tensors (whichever of the two file layouts holds them), its config and its tokenizer."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        remedy = "The text encoder's folder belongs to the checkpoint: download the whole repository."
        raise WeightsNotFound(str(folder), "it holds no .safetensors file", remedy)
    halves = {"alone": "encoder.", "with decoder": "model.encoder."}
    tensors = [_encoder_tensors(_digests(file, halves, memo)) for file in files]
    texts = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
        if (folder / name).is_file()
    }
    return fingerprint("text encoder", {"tensors": tensors, "files": texts})


def _encoder_tensors(found: Mapping[str, str]) -> str:
    nothing = hashlib.sha256().hexdigest()
    return found["alone"] if found["alone"] != nothing else found["with decoder"]
