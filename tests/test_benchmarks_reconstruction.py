"""The benchmark of reconstruction: figures of a model through the product's own autoencoder, and pictures."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from tests.benchmarks.bench_reconstruction import draw, loaded, main, reconstructed, table
from tests.spectrogram_picture import levels, png

CARRIED = Path(__file__).parents[1] / "stages/pretrain/carried/autoencoder.safetensors"


def tones() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    time = torch.arange(16_384) / SAMPLE_RATE_HZ
    tone = 0.3 * torch.sin(2 * torch.pi * torch.tensor([[220.0], [440.0]]) * time)
    return tone[:, None].repeat(1, 2, 1), torch.tensor([0.3, 0.3]), ["low", "high"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return loaded(CARRIED, tmp_path_factory.mktemp("scratch"))


def test_sounds_come_back_as_long_as_they_were(autoencoder):
    made = reconstructed(autoencoder, tones()[0][..., :10_000])
    assert made.shape == (2, 2, 10_000)


def test_the_table_tells_baselines_what_was_made_and_families():
    lines = list(table(tones()[0], tones(), families=True))
    names = [line[:18].strip() for line in lines]
    assert names == ["silence", "low-pass 4 kHz", "low-pass 1 kHz", "mean spectrum", "reconstruction", "high", "low"]
    assert lines[4].split()[1:3] == ["0.00", "0.00"]


def test_the_shipped_model_is_measured_and_recordings_if_they_are_there(tmp_path, capsys):
    np.savez(tmp_path / "r.npz", drums=(tones()[0][:1].numpy() * 32767).astype("int16"))
    main(["--sounds", "1", "--recordings", str(tmp_path / "r.npz")])
    printed = capsys.readouterr().out
    assert printed.count("reconstruction") == 2 and "real drums: 1 sounds" in printed


def test_a_missing_file_of_recordings_names_the_target_that_fetches_them(tmp_path, capsys):
    main([str(CARRIED), "--sounds", "1", "--recordings", str(tmp_path / "none.npz")])
    assert "make recordings" in capsys.readouterr().out


def test_a_tone_is_bright_at_its_place_and_dark_elsewhere():
    picture = levels(tones()[0][0])
    brightest = int(picture[:, 10].argmax())
    assert brightest > 0.85 * len(picture) and int(picture[10, 10]) < 30


def test_a_picture_is_a_png_of_its_pixels():
    grey = torch.tensor([[0, 255, 7], [1, 2, 3]], dtype=torch.uint8)
    made = png(grey)
    start, length = made.index(b"IDAT") + 4, int.from_bytes(made[made.index(b"IDAT") - 4 : made.index(b"IDAT")])
    assert zlib.decompress(made[start : start + length]) == b"\0\x00\xff\x07\0\x01\x02\x03"
    assert made[16:24] == b"\0\0\0\x03\0\0\0\x02"


def test_each_family_has_a_picture(tmp_path):
    draw("synthetic", tones()[0], tones(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"synthetic_high.png", "synthetic_low.png"}
