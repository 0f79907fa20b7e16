"""Puts the trained parts of tiny-base into one folder: `python -m stages.pretrain.assemble AUTOENCODER DIR TO`.

AUTOENCODER    weights, of `stages.pretrain.autoencoder.run`
DIR            output of `stages.pretrain.transformer.run`: weights, what is told of them, text_encoder/
TO             the folder that ships, with the digests that it is compared with before use
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stages.contract import Weights
from stages.models.bundled_weights import DIGESTS_FILE, digest_lines
from stages.models.checkpoint_folder import CONFIG_FILE, WEIGHTS_FILE, open_folder
from stages.models.families import tiny
from stages.models.load_weights import (
    AUTOENCODER,
    load_autoencoder,
    load_conditioner,
    load_denoiser,
    load_text_encoder,
)
from stages.pretrain.autoencoder.architecture import CARRIED_SHAPE, autoencoder_config

LICENCE = """These weights are part of stable-audio-3-trainer and under its licence (MIT).
They were trained by the project, from random values, on sounds that its own synthesiser makes, and on no recording.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Assemble as the arguments say; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("autoencoder", "transformer", "to"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--name", default="transformer", help="of the transformer's run")
    options = parser.parse_args(arguments)
    assemble(options.autoencoder, options.transformer, options.to, options.name)
    print((options.to / DIGESTS_FILE).read_text(encoding="ascii"), end="")


def assemble(autoencoder: Path, transformer: Path, to: Path, name: str = "transformer") -> None:
    """Write the checkpoint folder, in place of one that is there; nothing is written unless its networks load.

    Raises:
        WeightsMismatch: tensors are missing, too many or of other shapes than the config says.
        ValueError: a value is not finite.
    """
    about = json.loads((transformer / f"{name}.json").read_text(encoding="utf-8"))
    tensors = {AUTOENCODER + key: value for key, value in load_file(autoencoder).items()}
    tensors |= load_file(transformer / f"{name}.safetensors")
    check_finite(tensors)
    aside = to.with_name(f"{to.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    config = model_config(about["config"])
    aside.mkdir(parents=True)
    (aside / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (aside / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    (aside / "LICENSE").write_text(LICENCE, encoding="utf-8")
    weights = Weights(model=tiny.MODELS[0].name, folder=aside, config=config, digests={})
    _copy_contents(transformer / "text_encoder", aside / weights.sizes.text_encoder_folder)
    _check_loads(aside)
    (aside / DIGESTS_FILE).write_text(digest_lines(aside), encoding="ascii")
    shutil.rmtree(to, ignore_errors=True)
    aside.rename(to)


def model_config(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The model_config.json of tiny-base.

    Args:
        sections: `conditioning` and `diffusion`, of the transformer's run.
    """
    (spec,) = tiny.MODELS
    autoencoder = {"type": "autoencoder", "iterate_batch": True, "chunked": True}
    return {
        "model_type": "diffusion_cond_inpaint",
        "sample_size": spec.max_samples,
        "sample_rate": spec.sample_rate_hz,
        "audio_channels": 2,
        "model": {
            "pretransform": {**autoencoder, "config": autoencoder_config(CARRIED_SHAPE)},
            "conditioning": sections["conditioning"],
            "diffusion": sections["diffusion"],
            "io_channels": CARRIED_SHAPE.latent_channels,
        },
    }


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises: ValueError, naming the tensors that hold a value beyond half precision or none at all."""
    if wrong := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"values that are not finite in {', '.join(wrong)}")


def _copy_contents(source: Path, target: Path) -> None:
    """Copy files by content: their permissions are those of new files, as others read an installed package."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        (target / file.name).write_bytes(file.read_bytes())


def _check_loads(folder: Path) -> None:
    """Load everything as the product does. Raises WeightsMismatch, WeightsNotFound."""
    weights = open_folder(tiny.MODELS[0].name, folder)
    for load in (load_denoiser, load_conditioner, load_autoencoder, load_text_encoder):
        load(weights)


if __name__ == "__main__":
    main()
