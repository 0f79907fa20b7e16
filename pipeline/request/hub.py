"""Published weights through huggingface_hub: its cache, offline mode and token. Light: imports it on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages import catalogue
from stages.errors import WeightsNotFound
from stages.model_config import ModelConfig
from stages.records import ModelSpec

CHECKPOINT_FILES = ("model_config.json", "model.safetensors")
"""What the repository of a base model, or of an autoencoder alone, must hold."""


def hub_folder(spec: ModelSpec, *, download: bool) -> Path | None:
    """The snapshot of a base or inference model in the hub's cache; None when it is not there and `download` is off.

    Raises: as `snapshot`.
    """
    assert spec.repo is not None, "only published models have a repository"
    base = next(base for base in catalogue.models().values() if base.inference_model == spec.inference_model)
    config = ModelConfig(catalogue.family_of(base.name).model_config(base.name))
    wanted = (*CHECKPOINT_FILES, f"{config.text_encoder_folder}/*")
    return snapshot(spec.repo, wanted, download=download)


def snapshot(repo: str, wanted: Sequence[str], *, download: bool) -> Path | None:
    """The folder of a repository's snapshot that has files for all patterns.

    Args:
        wanted: glob patterns.
        download: also over the network; otherwise None when the hub's cache has no complete snapshot.

    Raises:
        WeightsNotFound: with what to type next: accept the licence, log in, go online, or pass --weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _complete(Path(snapshot_download(repo, allow_patterns=list(wanted), local_files_only=True)), wanted)
    except (LocalEntryNotFoundError, _Incomplete):
        return _downloaded(repo, wanted) if download else None


class _Incomplete(Exception):
    """A snapshot folder lacks files, as an interrupted download leaves it."""


def _complete(folder: Path, wanted: Sequence[str]) -> Path:
    """The folder, if it has files for all patterns. Raises: _Incomplete."""
    if not all(any(folder.glob(pattern)) for pattern in wanted):
        raise _Incomplete
    return folder


def _downloaded(repo: str, wanted: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        remedy = f"Unset HF_HUB_OFFLINE and run again, or pass a downloaded folder of {repo} with --weights."
        raise WeightsNotFound(repo, "they are not in the hub's cache and HF_HUB_OFFLINE is set", remedy)
    by_hand = f"Or download the folder elsewhere and pass it with --weights (`hf download {repo} --local-dir DIR`)."
    try:
        return _complete(Path(snapshot_download(repo, allow_patterns=list(wanted))), wanted)
    except GatedRepoError as error:
        accept = f"Accept the licence at https://huggingface.co/{repo} and run `hf auth login`, then run again."
        raise WeightsNotFound(repo, "its licence is not accepted by this account", f"{accept} {by_hand}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = f"the hub could not be reached, or refused the request ({first})"
        raise WeightsNotFound(repo, why, f"Run again later. {by_hand}") from error
    except _Incomplete as error:
        raise WeightsNotFound(repo, f"the repository gave no {', '.join(wanted)}", by_hand) from error
