"""Typed access to the sizes in a parsed model_config.json. Light: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT_ENCODER_FOLDER = "t5gemma-b-b-ul2"
"""Where a checkpoint folder keeps its text encoder unless its config names another sub-folder."""

_SIZES = (
    *("sample_rate_hz", "max_samples", "latent_channels", "downsampling_ratio", "audio_channels"),
    *("transformer_width", "transformer_depth", "max_prompt_tokens"),
)
"""Properties that are positive numbers."""


@dataclass(frozen=True)
class ModelConfig:
    """The sizes that stages need of a base model's model_config.json; the networks read the whole of it themselves.

    Raises:
        KeyError: by each property, where the config is not that of a Stable Audio 3 base model.
    """

    content: Mapping[str, Any]
    """The parsed file."""

    def check(self) -> None:
        """Read every size once, so that a damaged config is noticed where it is opened.

        Raises:
            ValueError: a size is not positive.
            KeyError, TypeError, AttributeError, ValueError, ArithmeticError: one is missing or of the wrong kind.
        """
        sizes = {name: getattr(self, name) for name in _SIZES}
        wrong = [f"{name} is {value}" for name, value in sizes.items() if value <= 0]
        if wrong or self.num_memory_tokens < 0 or not self.text_encoder_folder:
            raise ValueError(", ".join(wrong) or "a number of tokens or the text encoder's folder is wrong")

    @property
    def sample_rate_hz(self) -> int:
        return int(self.content["sample_rate"])

    @property
    def max_samples(self) -> int:
        """The longest signal the model was trained on, in samples."""
        return int(self.content["sample_size"])

    @property
    def latent_channels(self) -> int:
        return int(self.content["model"]["io_channels"])

    @property
    def autoencoder(self) -> Mapping[str, Any]:
        """The section that shapes the autoencoder."""
        section: Mapping[str, Any] = self.content["model"]["pretransform"]["config"]
        return section

    @property
    def downsampling_ratio(self) -> int:
        """Samples per latent frame."""
        return int(self.autoencoder["downsampling_ratio"])

    @property
    def audio_channels(self) -> int:
        return int(self.autoencoder["io_channels"])

    @property
    def diffusion(self) -> Mapping[str, Any]:
        """The section of the diffusion transformer and its objective."""
        section: Mapping[str, Any] = self.content["model"]["diffusion"]
        return section

    @property
    def transformer(self) -> Mapping[str, Any]:
        """The sizes of the diffusion transformer."""
        section: Mapping[str, Any] = self.diffusion["config"]
        return section

    @property
    def transformer_width(self) -> int:
        return int(self.transformer["embed_dim"])

    @property
    def transformer_depth(self) -> int:
        """Transformer blocks."""
        return int(self.transformer["depth"])

    @property
    def num_memory_tokens(self) -> int:
        return int(self.transformer.get("num_memory_tokens", 0))

    @property
    def conditioners(self) -> list[Mapping[str, Any]]:
        """Entries with `id`, `type` and `config`."""
        entries: list[Mapping[str, Any]] = self.content["model"]["conditioning"]["configs"]
        return entries

    @property
    def prompt_conditioner(self) -> Mapping[str, Any]:
        """Settings of the text encoder."""
        for entry in self.conditioners:
            if entry["type"] == "t5gemma":
                settings: Mapping[str, Any] = entry["config"]
                return settings
        raise KeyError("no conditioner of type t5gemma")

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of a prompt that the model sees; the rest is cut off."""
        return int(self.prompt_conditioner["max_length"])

    @property
    def text_encoder_folder(self) -> str:
        """Sub-folder of the checkpoint folder that holds the text encoder."""
        return str(self.prompt_conditioner.get("subfolder", TEXT_ENCODER_FOLDER))
