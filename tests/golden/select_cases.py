"""Make the compact selection of one golden family: the same layout with fewer cases, small enough to live in the tree.

    python tests/golden/select_cases.py FULL/tiny-s tests/golden/tiny-s

The full set is run by pointing GOLDEN_DIR at it. Tensors that a case can do without are left out of its file and of
index.json: an earlier state where a later one stays, and double-precision versions that decide nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

CASES = (
    "same_encode_short",
    "same_decode_noisy",
    "conditioning",
    "timestep_features",
    "dit_forward",
    "dit_cfg",
    "distribution_shift",
    "adapter_inputs",
    "adapter_lora_r1",
    "adapter_dora-rows_r1",
    "train_inputs",
    "train_schedule",
    "train_lora",
    "train_dora-rows_fresh",
    "train_lora_masked",
)
LEFT_OUT = re.compile(r"after_step1:.*|.*_float64|hidden_.*|out_nopad_check|out_cfg(7.*|4_apg05)")
WHOLE_FILES = ("model.safetensors", "model_config.json", "adapter_filters.json", "statistics.json")
ADAPTERS = "adapters/*_r1.safetensors"
"""One file of every kind, for what a file looks like."""
LIMIT_BYTES = 5_000_000


def main(full: Path, compact: Path) -> None:
    """Write the selection; refuses to leave one above the limit."""
    if compact.exists():
        shutil.rmtree(compact)
    (compact / "cases").mkdir(parents=True)
    index = json.loads((full / "index.json").read_text("utf-8"))
    index["cases"] = [_selected(entry, full, compact) for entry in index["cases"] if entry["case"] in CASES]
    (compact / "index.json").write_text(json.dumps(index, separators=(",", ":"), ensure_ascii=False), "utf-8")
    for name in WHOLE_FILES:
        if (full / name).is_file():
            _copy(full / name, compact / name)
    folders = [*_text_encoder_folders(full), full / "preencode"]
    inside = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in [*inside, *sorted(full.glob(ADAPTERS))]:
        _copy(path, compact / path.relative_to(full))
    total = sum(path.stat().st_size for path in compact.rglob("*") if path.is_file())
    print(f"{compact}: {len(index['cases'])} cases, {total:,} bytes")
    if total >= LIMIT_BYTES:
        raise SystemExit(f"the selection must stay below {LIMIT_BYTES:,} bytes; leave out a case")


def _selected(entry: dict[str, Any], full: Path, compact: Path) -> dict[str, Any]:
    """Copy the case's tensors and the adapter files it names; its entry without what was left out."""
    with safe_open(full / entry["file"], framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if not LEFT_OUT.fullmatch(name)}  # noqa: SIM118
    save_file(kept, compact / entry["file"])
    adapters = entry["params"].get("adapter_files", [])
    for adapter in [*adapters, entry["params"].get("adapter_file")]:
        if adapter:
            _copy(full / adapter, compact / adapter)
    outputs = {name: rules for name, rules in entry["outputs"].items() if not LEFT_OUT.fullmatch(name)}
    return {**entry, "outputs": outputs}


def _text_encoder_folders(full: Path) -> list[Path]:
    """Sub-folders with a tokenizer."""
    return sorted(path.parent for path in full.glob("*/tokenizer.json"))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
