"""The judge: a small network that names the family and the note of a sound, trained on fresh renders.

It is to be judged on held-out renders first (`accuracy`), then to say whether generated sounds are what their prompts
ask for. `python -m stages.pretrain.judge OUT --seconds 60` trains one. Letters beside those of the house: Q bins of
logarithmic frequency.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.carried import CARRIED, carried_autoencoder, reconstructed
from stages.pretrain.autoencoder.variety import worn
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ
from stages.pretrain.synthesis.synthesiser import FAMILIES, SynthBatch, Synthesiser

CLASSES = tuple(FAMILIES)
LOWEST_NOTE, HIGHEST_NOTE = 24, 108
_WINDOW, _HOP = 8192, 1024
_BINS_PER_OCTAVE, _LOWEST_HZ, _OCTAVES = 24, 30.0, 9
_WINDOWS = (1.5, 3.0, 6.7)
"""Seconds of the renders that a judge is trained on by the clock: sounds with more or less silence behind them."""
_HELD_OUT_SEED = 424_242
_UNKNOWN = -100
"""Target of a sound without a note: torch's cross entropy leaves it out."""


def log_spectrum(audio_BAX: Tensor) -> Tensor:
    """Level of the channels' mean and half difference, (B, 2, Q, T), 24 bins an octave from 30 Hz, silence near 0."""
    left_BX, right_BX = audio_BAX.float().unbind(dim=1)
    pair_BAX = torch.stack([(left_BX + right_BX) / 2, (left_BX - right_BX) / 2], dim=1)
    window_X = torch.hann_window(_WINDOW, device=audio_BAX.device)
    spectrum = torch.stft(pair_BAX.flatten(0, 1), _WINDOW, _HOP, window=window_X, return_complex=True).abs()
    place_Q = _bin_frequencies(audio_BAX.device) * (_WINDOW / SAMPLE_RATE_HZ)
    below_Q = place_Q.long().clamp_max(_WINDOW // 2 - 1)
    levels = torch.lerp(spectrum[:, below_Q], spectrum[:, below_Q + 1], (place_Q - below_Q)[:, None])
    return (levels + 1e-3).log().add(7).div(5).unflatten(0, pair_BAX.shape[:2])


def _bin_frequencies(device: torch.device) -> Tensor:
    count = _BINS_PER_OCTAVE * _OCTAVES
    return _LOWEST_HZ * torch.exp2(torch.arange(count, device=device) / _BINS_PER_OCTAVE)


class Judge(nn.Module):
    """Convolutions over logarithmic frequency and time; what they find is averaged over time."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        sizes = (2, width // 2, width, width, width)
        self.layers = nn.ModuleList(_layer(inner, outer) for inner, outer in pairwise(sizes))
        # Frequency is kept where the note is read: its place tells the pitch.
        num_bins = _BINS_PER_OCTAVE * _OCTAVES // 4
        self.shape = nn.Sequential(nn.Linear(num_bins * width, 256), nn.GELU())
        self.classes = nn.Linear(256, len(CLASSES))
        self.notes = nn.Linear(256 + 2 * _BINS_PER_OCTAVE * _OCTAVES, HIGHEST_NOTE - LOWEST_NOTE + 1)

    def embedding(self, audio_BAX: Tensor) -> Tensor:
        """(B, 256) what the classes are told from; sounds that are alike lie close together."""
        return self._embedding(log_spectrum(audio_BAX))

    def _embedding(self, levels_B2QT: Tensor) -> Tensor:
        hidden = levels_B2QT
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            hidden = F.avg_pool2d(hidden, (2 if number < 2 else 1, 2), ceil_mode=True)
        result: Tensor = self.shape(hidden.mean(dim=3).flatten(1))
        return result

    def forward(self, audio_BAX: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes, (B, len(CLASSES)), and of the notes from LOWEST_NOTE to HIGHEST_NOTE."""
        levels_B2QT = log_spectrum(audio_BAX)
        embedding = self._embedding(levels_B2QT)
        return self.classes(embedding), self.notes(torch.cat([embedding, levels_B2QT.mean(dim=3).flatten(1)], dim=1))

    @torch.no_grad()
    def verdicts(self, audio_BAX: Tensor) -> list[tuple[str, int]]:
        """Family and MIDI note of each sound; the note means something for families that have one."""
        class_logits, note_logits = self(audio_BAX)
        notes = (note_logits.argmax(dim=1) + LOWEST_NOTE).tolist()
        return [(CLASSES[index], note) for index, note in zip(class_logits.argmax(dim=1).tolist(), notes, strict=True)]


def _layer(inner: int, outer: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(4, outer), nn.GELU())


def judge_loss(judge: Judge, batch: SynthBatch) -> Tensor:
    """Cross entropy of families, plus that of notes over the sounds that have one."""
    device = batch.audio_BAX.device
    class_logits, note_logits = judge(batch.audio_BAX)
    families_B = torch.tensor([CLASSES.index(facts.family) for facts in batch.facts], device=device)
    notes_B = torch.tensor([_note_target(facts) for facts in batch.facts], device=device)
    note_loss = F.cross_entropy(note_logits, notes_B, ignore_index=_UNKNOWN, reduction="sum")
    return F.cross_entropy(class_logits, families_B) + note_loss / (notes_B != _UNKNOWN).sum().clamp_min(1)


def _note_target(facts: SoundFacts) -> int:
    inside = facts.note is not None and LOWEST_NOTE <= facts.note <= HIGHEST_NOTE
    return facts.note - LOWEST_NOTE if inside and facts.note is not None else _UNKNOWN


def train_judge(
    synthesiser: Synthesiser,
    steps: int,
    *,
    num_clips: int = 64,
    num_samples: int = 3 * SAMPLE_RATE_HZ,
    families: Sequence[str] | None = None,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Judge:
    """A judge trained on a fresh batch a step, the learning rate falling to zero.

    Args:
        families: those to train on; all by default.
        report: called with the step and its loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge().to(synthesiser.device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        loss = judge_loss(judge, synthesiser.batch(num_clips, num_samples, families))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        report(step, float(loss.detach()))
    return judge.eval()


@dataclass(frozen=True)
class Accuracy:
    """Shares from 0 to 1; `note` over the sounds that have one, NaN where none has."""

    family: float
    note: float


def accuracy(judge: Judge, audio_BAX: Tensor, facts: Sequence[SoundFacts]) -> Accuracy:
    """How many sounds are heard as the family and the note that the facts (or prompts) name."""
    verdicts = judge.verdicts(audio_BAX)
    families = [family == fact.family for (family, _), fact in zip(verdicts, facts, strict=True)]
    notes = [note == fact.note for (_, note), fact in zip(verdicts, facts, strict=True) if fact.note is not None]
    return Accuracy(sum(families) / len(families), sum(notes) / len(notes) if notes else float("nan"))


Copy = Callable[[Tensor], Tensor]
"""Sounds (B, 2, X) that are still the same, made worse in some way."""


def copied(audio_BAX: Tensor, copies: Sequence[Copy]) -> Tensor:
    """A share of the sounds as they are, an equal share through each copy."""
    shares = audio_BAX.tensor_split(len(copies) + 1)
    return torch.cat([shares[0], *(copy(share) for copy, share in zip(copies, shares[1:], strict=True))])


class _Renders:
    """Sounds of one length to draw batches from, a part of them made anew from time to time."""

    def __init__(
        self, synthesiser: Synthesiser, num_samples: int, parts: int, part_size: int, copies: Sequence[Copy]
    ) -> None:
        self.synthesiser, self.num_samples, self.part_size, self.copies = synthesiser, num_samples, part_size, copies
        self.parts = [self._made() for _ in range(parts)]

    def _made(self) -> SynthBatch:
        batch = self.synthesiser.batch(self.part_size, self.num_samples)
        return SynthBatch(copied(batch.audio_BAX, self.copies), batch.facts)

    def renew(self, number: int) -> None:
        """Make a part anew, each in its turn."""
        self.parts[number % len(self.parts)] = self._made()

    def batch(self, size: int, random: Random) -> SynthBatch:
        """Some sounds of one part, at random levels."""
        part = random.choice(self.parts)
        rows = random.sample(range(self.part_size), min(size, self.part_size))
        gain = torch.tensor([random.uniform(0.3, 1.0) for _ in rows], device=part.audio_BAX.device)
        return SynthBatch(part.audio_BAX[rows] * gain[:, None, None], [part.facts[row] for row in rows])


def train_judge_for(
    seconds: float,
    device: torch.device,
    *,
    seed: int = 0,
    copies: Sequence[Copy] = (),
    part_size: int = 256,
    batch_size: int = 64,
    steps_per_part: int = 8,
    learning_rate: float = 1e-3,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Judge:
    """A judge trained by the clock on renders of several lengths, each seen some times; the rate falls to zero.

    Args:
        copies: what a share each of the renders goes through, so that a judge knows worse sounds than renders are.
    """
    torch.manual_seed(seed)
    random, synthesiser = Random(seed), Synthesiser(device, seed)
    judge = Judge().to(device)
    renders = [_Renders(synthesiser, round(each * SAMPLE_RATE_HZ), 3, part_size, copies) for each in _WINDOWS]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate)
    began = time.monotonic()
    for step in count():
        share = (time.monotonic() - began) / seconds
        if step and share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * max(0.0, 1 - share) * min(1.0, (step + 1) / 50)
        source = renders[step % len(renders)]
        loss = judge_loss(judge, source.batch(batch_size, random))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        if step % (steps_per_part * len(renders)) < len(renders):
            source.renew(step // (steps_per_part * len(renders)))
        if step % 100 == 0:
            report(step, float(loss.detach()))
    return judge.eval()


def save_judge(judge: Judge, file: Path) -> None:
    """Write a judge's weights in float16."""
    weights = {name: value.half().cpu().contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, file, metadata={"format": "pt"})


def load_judge(file: Path, device: torch.device) -> Judge:
    """A judge from its weights, float32."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return judge.to(device).eval().requires_grad_(False)


def held_out_accuracy(
    judge: Judge, device: torch.device, copies: Mapping[str, Copy] | None = None, num_sounds: int = 416
) -> dict[str, Accuracy]:
    """Accuracy on renders of a seed that no judge is trained on, by their seconds, and on copies of them by name."""
    found = {}
    for seconds in _WINDOWS:
        batch = Synthesiser(device, _HELD_OUT_SEED).batch(num_sounds, round(seconds * SAMPLE_RATE_HZ))
        for name, copy in {"": _as_is, **(copies or {})}.items():
            found[f"{seconds} s {name}".strip()] = _accuracy_of_all(judge, copy(batch.audio_BAX), batch.facts)
    return found


def _as_is(audio_BAX: Tensor) -> Tensor:
    return audio_BAX


def _accuracy_of_all(judge: Judge, audio_BAX: Tensor, facts: Sequence[SoundFacts], at_a_time: int = 104) -> Accuracy:
    parts = [
        accuracy(judge, part_BAX, facts[at : at + len(part_BAX)])
        for at, part_BAX in zip(range(0, len(facts), at_a_time), audio_BAX.split(at_a_time), strict=True)
    ]
    return Accuracy(
        family=sum(part.family for part in parts) / len(parts), note=sum(part.note for part in parts) / len(parts)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a judge, judge it, write its weights and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of judge.safetensors and judge.json")
    parser.add_argument("--seconds", type=float, default=60.0, help="wall clock of the training")
    parser.add_argument("--copies", action="store_true", help="train on worn sounds and reconstructions too")
    parser.add_argument("--autoencoder", type=Path, default=CARRIED, help="weights that reconstruct")
    parser.add_argument("--held-out", type=int, default=416, help="sounds of each length to judge it by")
    parser.add_argument("--part", type=int, default=256, help="sounds of each length made at a time")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    copies = _copies(carried_autoencoder(device, options.autoencoder))
    trained_on = list(copies.values()) if options.copies else []
    judge = train_judge_for(options.seconds, device, copies=trained_on, part_size=options.part, report=_say)
    save_judge(judge, options.out / "judge.safetensors")
    figures = {name: vars(found) for name, found in held_out_accuracy(judge, device, copies, options.held_out).items()}
    (options.out / "judge.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures), flush=True)


def _copies(autoencoder: Autoencoder) -> dict[str, Copy]:
    return {"worn": worn, "reconstructed": partial(reconstructed, autoencoder)}


def _say(step: int, loss: float) -> None:
    print(f"[judge] step {step} loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
