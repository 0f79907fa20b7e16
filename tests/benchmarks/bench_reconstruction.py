"""How well an autoencoder gives sounds back: held-out synthesised sounds, and recordings where they were fetched.

    python tests/benchmarks/bench_reconstruction.py [MODEL] [--sounds 208] [--families] [--pictures FOLDER]

MODEL is a checkpoint folder, or the weights of an autoencoder of tiny-base alone (.safetensors); without it, the model
that ships is measured. It is loaded and run as encoding and generation do, in float32 on the CPU, without noise.

    log-STFT, log-mel   mean absolute difference in dB (windows of 2048, 512 and 128 samples, floor -80 dB)
    SI-SDR              scale-invariant signal-to-distortion ratio in dB
    level               level made minus level wanted, dB
    side                root of side power over mid power; that of the originals stands in the line of the low-pass

Beside it stand silence, the originals low-passed, and each original's mean spectrum. Recordings: `make recordings`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages import catalogue
from stages.contract import Weights
from stages.models.load_weights import load_autoencoder
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import Shape, model_config
from stages.pretrain.autoencoder.figures import Rows, baselines, figures
from stages.pretrain.autoencoder.run import Judged, held_out, recordings
from tests.benchmarks.recordings import FOLDER
from tests.spectrogram_picture import write_picture

SHAPE = Shape(latent_channels=128, chunk_frames=4)
"""Of the weights of an autoencoder alone."""
COLUMNS = ("log_stft_db", "log_mel_db", "si_sdr_db", "level_db", "side_made")
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        autoencoder = loaded(options.model, Path(scratch))
    for name, judged in sets(options.sounds, options.recordings).items():
        made_BAX = reconstructed(autoencoder, judged[0])
        print(f"\n{name}: {len(made_BAX)} sounds\n{header()}")
        for line in table(made_BAX, judged, families=options.families):
            print(line, flush=True)
        if options.pictures:
            draw(name, made_BAX, judged, options.pictures)


def parser() -> argparse.ArgumentParser:
    """Options of the benchmark."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", type=Path, nargs="?", help="checkpoint folder, or .safetensors of an autoencoder alone")
    made.add_argument("--sounds", type=int, default=26, help="held-out sounds; published figures are of 208")
    made.add_argument("--recordings", type=Path, default=FOLDER / "recordings.npz")
    made.add_argument("--families", action="store_true", help="a line for each family of synthesised sounds")
    made.add_argument("--pictures", type=Path, help="folder of spectrograms: original above, reconstruction below")
    return made


def loaded(model: Path | None, scratch: Path) -> Autoencoder:
    """The autoencoder, by the product's own loader; `scratch` is for files that it needs."""
    folder = model or catalogue.bundled_families()[0].FOLDER
    if folder.suffix == ".safetensors":
        weights, folder = load_file(folder), scratch
        (folder / "model_config.json").write_text(json.dumps(model_config(SHAPE)), encoding="utf-8")
        save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "model_config.json").read_text(encoding="utf-8"))
    return load_autoencoder(Weights(model=folder.name, folder=folder, config=config, digests={}))


def sets(num_sounds: int, file: Path) -> dict[str, Judged]:
    """Held-out synthesised sounds, and recordings where the file is there."""
    device = torch.device("cpu")
    found = {"synthetic": held_out(device, num_sounds)}
    if file.exists():
        return found | recordings(file, device)
    print(f"No recordings at {file}: `make recordings` fetches them.")
    return found


@torch.no_grad()
def reconstructed(autoencoder: Autoencoder, audio_BAX: Tensor) -> Tensor:
    """Sounds encoded and decoded again, as long as they were."""
    made = []
    for batch_BAX in audio_BAX.split(BATCH):
        latents_BCT, _ = autoencoder.encode_batch(list(batch_BAX))
        made.append(autoencoder.decode(latents_BCT)[..., : audio_BAX.shape[-1]])
    return torch.cat(made)


def header() -> str:
    """Names of the columns."""
    return f"{'':18}" + "".join(f"{name:>10}" for name in ("log-STFT", "log-mel", "SI-SDR", "level", "side"))


def table(made_BAX: Tensor, judged: Judged, *, families: bool) -> Iterator[str]:
    """Lines of the baselines, of what was made, and of its families if wanted."""
    for name, rows in baselines(*judged).items():
        yield _line(name, rows, "all")
    rows = figures(made_BAX, *judged)
    yield _line("reconstruction", rows, "all")
    for family in [name for name in rows if name != "all"] if families else []:
        yield _line(f"  {family}", rows, family)


def _line(name: str, rows: Rows, family: str) -> str:
    values = [rows[family].get(column) for column in COLUMNS]
    # Silence has no direction that could be compared.
    shown = ["-" if value is None or value <= -60 else f"{value:.2f}" for value in values]
    return f"{name:18}" + "".join(f"{value:>10}" for value in shown)


def draw(name: str, made_BAX: Tensor, judged: Judged, folder: Path) -> None:
    """A picture of the first sound of each family, or of every fourth recording."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted_BAX, _, families = judged
    chosen = {family: families.index(family) for family in sorted(set(families))}
    chosen = chosen or {str(place): place for place in range(0, len(wanted_BAX), 4)}
    for label, place in chosen.items():
        file = folder / f"{name}_{label}.png".replace(" ", "_")
        write_picture([wanted_BAX[place], made_BAX[place]], file)


if __name__ == "__main__":
    main()
