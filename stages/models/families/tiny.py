"""tiny-base, the trained model that ships with the project: the published layout with few channels.

Its files lie in the package and are used in place, through the same loader as any checkpoint folder. `stages/pretrain`
makes them; the networks' sizes are in the folder's model_config.json. Light: standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.records import ModelSpec

FOLDER = Path(__file__).parents[1] / "embedded" / "tiny-base-v2"
"""The checkpoint folder; other weights get another number, as latents and adapters belong to one set of weights."""

EARLIER_WEIGHTS = {
    "tiny-base-v1": frozenset(
        {
            "8be08a06e20991e1824dd2862d769a3dda232536c074f6175355249d4d08c79c",  # autoencoder
            "c9de1bad8c9cbdc3e6f9db6dc50c778d3c32faa10ed96cc4f205d11b6d835587",  # transformer
            "68b46dde6f82265452b6c07e2acf1171e24e45e55a1383ce8f94db1d7432d386",  # conditioner
            "3b988a121840ddc223eea295ff117f0512b732e6365c30e4a79ba3c7d4ef1079",  # text encoder
        }
    )
}
"""Weights that had the model's name before, by the name of their folder, and the digests of their components."""

MODELS = (
    ModelSpec(
        name="tiny-base",
        # There is no distilled twin: adapters are heard on the weights that they were trained on.
        inference_model="tiny",
        repo=None,
        sample_rate_hz=44_100,
        downsampling_ratio=4096,
        latent_channels=128,
        max_samples=5_324_800,
        max_seconds=120,
        short_name="sa3-tiny",
        guidance=3.0,
    ),
)


def model_config(model: str) -> dict[str, Any]:
    """The model_config.json of tiny-base."""
    assert model == MODELS[0].name, "the only model of this family"
    config: dict[str, Any] = json.loads((FOLDER / "model_config.json").read_text(encoding="utf-8"))
    return config
