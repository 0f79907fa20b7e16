"""Whether adapters learn: distance of generated clips to held-out clips of a style, for adapter kinds, rates and steps.

    python tests/benchmarks/bench_learning.py [--kinds lora bora] [--steps 100 300 1000] [--rates 1e-4 3e-4] ...

Each kind is trained on clips of the made-up style `zarnel` (pipeline/example_style.py) at each rate. At each number of
steps it is written as a file and used to generate from held-out prompts, with the noise that the base is given as well.

    fall     by how much the distance to the held-out clips falls against the base: spectral, embedding
    spill    change of clips whose prompts lack the style's name, in that of clips that have it: the same words without
             the name, and other sounds; the larger of the two ways
    loss     on fixed noise, before -> after: clips trained on, clips held out. Where the second rises, it memorises.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from stages import catalogue
from stages.judge.style_distance import WAYS, chance_distances, style_distances
from tests.learning import OTHERS, SAME_WORDS, Dataset, Ear, Sizes, compared, dataset, train

FIRST = ("lora", "dora-rows", "bora", "dora-rows-xs")
"""The kinds that goals are set for; they are measured first."""


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kinds", nargs="+", default=FIRST, help="`all` for all nine")
    made.add_argument("--steps", nargs="+", type=int, default=[100, 300])
    made.add_argument("--rates", nargs="+", type=float, default=[1e-3])
    made.add_argument("--xs-rates", nargs="+", type=float, help="of the -xs kinds; ten times the others unless given")
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--batch-size", type=int, default=1)
    made.add_argument("--clips", type=int, default=24, help="of the style, to learn from")
    made.add_argument("--plain", type=int, default=0, help="further clips of other sounds, without the style's name")
    made.add_argument("--held-out", type=int, default=16, help="clips to compare with, and prompts of each sort")
    made.add_argument("--seconds", type=float, default=5.0, help="of every clip")
    made.add_argument("--cfg", type=float, default=3.0)
    made.add_argument("--sampler-steps", type=int, default=25)
    made.add_argument("--device", default="auto")
    made.add_argument("--base-precision", help="of the training; unset: bf16 on CUDA, else fp32")
    made.add_argument("--fast-path", default="auto", choices=("auto", "off"))
    made.add_argument("--workers", type=int, default=1, help="processes, each with a training of its own")
    made.add_argument("--weights", type=Path, help="folder of weights; unset: those that ship")
    made.add_argument("--out", type=Path, help="JSON file with all figures, written anew after each training")
    made.add_argument("--until", type=float, default=float("inf"), help="seconds after which no training begins")
    made.add_argument("--table", type=Path, help="measure nothing: print an earlier --out as a table in Markdown")
    asked = made.parse_args()
    if asked.kinds == ["all"]:
        asked.kinds = [*FIRST, *(kind for kind in catalogue.adapter_kinds() if kind not in FIRST)]
    return asked


class Laboratory:
    """What one process needs for any training: the encoded clips, a model to generate with, and what the base makes."""

    def __init__(self, asked: argparse.Namespace, data: Dataset) -> None:
        self.asked, self.data = asked, data
        self.ear = Ear.of(data, asked.device, asked.cfg, asked.sampler_steps)
        self.base = self.ear.hear()

    def measure(self, kind: str, rate: float) -> list[dict[str, Any]]:
        """One training, heard at each number of steps."""
        asked, folder = self.asked, self.data.root / f"{kind}-{rate:g}"
        precision = asked.base_precision or ("bf16" if self.ear.model.device.type == "cuda" else "fp32")
        params = {"adapter_type": kind, "learning_rate": rate, "rank": asked.rank, "batch_size": asked.batch_size}
        learned = train(
            self.data, folder, sorted(asked.steps), asked.device, asked.fast_path, base_precision=precision, **params
        )
        rows = []
        for one in learned:
            heard = compared(self.base, self.ear.hear(one.file), self.data.wanted_BAX)
            row = {"kind": kind, "rate": rate, **asdict(one), **asdict(heard)}
            rows.append({**row, "file": one.file.name, "fall": {way: heard.fall(way) for way in WAYS}})
        return rows


LABORATORY: list[Laboratory] = []
"""This process's, made on first use."""


def measured(asked: argparse.Namespace, data: Dataset, kind: str, rate: float) -> list[dict[str, Any]]:
    if not LABORATORY:
        torch.set_num_threads(max(1, torch.get_num_threads() // asked.workers))
        LABORATORY.append(Laboratory(asked, data))
    return LABORATORY[0].measure(kind, rate)


def results(asked: argparse.Namespace, data: Dataset, began: float) -> Iterator[list[dict[str, Any]]]:
    """Rows of each training as it ends, those of one rate before the next."""
    wanted = sorted(
        (number, asked.kinds.index(kind), kind, rate)
        for kind in asked.kinds
        for number, rate in enumerate(rates_of(asked, kind))
    )
    if asked.workers == 1:
        for *_, kind, rate in wanted:
            if time.monotonic() - began < asked.until:
                yield measured(asked, data, kind, rate)
        return
    left, running = wanted[::-1], set()
    with ProcessPoolExecutor(asked.workers, multiprocessing.get_context("spawn")) as pool:
        while left or running:
            while left and len(running) < asked.workers and time.monotonic() - began < asked.until:
                running.add(pool.submit(measured, asked, data, *left.pop()[2:]))
            if not running:
                return
            done: Future[list[dict[str, Any]]] = next(as_completed(running))
            running.remove(done)
            yield done.result()


def rates_of(asked: argparse.Namespace, kind: str) -> list[float]:
    if not kind.endswith("-xs"):
        return list(asked.rates)
    return asked.xs_rates or sorted({min(10 * rate, 0.01) for rate in asked.rates})


def line(row: dict[str, Any]) -> str:
    falls = "  ".join(f"{row['base'][way]:4.2f} > {row['adapted'][way]:4.2f} {row['fall'][way]:4.0%}" for way in WAYS)
    spill = " ".join(f"{max(row['spill'][sort].values()):4.2f}" for sort in (SAME_WORDS, OTHERS))
    losses = "  ".join("{:.3f} > {:.3f}".format(*row[name]) for name in ("train_losses", "held_out_losses"))
    rate, pace = f"{row['rate']:.0e}", 1000 * row["seconds"] / row["step"]
    return f"{row['kind']:<13} {rate:>6} {row['step']:>5}   {falls}   {spill}   {losses}   {pace:5.0f}"


HEADER = "kind            rate steps   spectral, fall       embedding, fall      spill       loss, held out   ms/step"


def by_way(figures: dict[str, float]) -> str:
    return ", ".join(f"{way} {figures[way]:.2f}" for way in WAYS)


COLUMNS = ("kind", "rate", "steps", "spectral", "embedding", "same words", "other sounds", "loss", "held-out loss")


def table(figures: dict[str, Any]) -> str:
    """Falls, spills and losses of each training, by kind and rate."""
    rows = sorted(figures["rows"], key=lambda row: (row["kind"], row["rate"], row["step"]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *map(cells_of, rows)))


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    falls = (f"{row['fall'][way]:.0%}" for way in WAYS)
    spill = (f"{max(row['spill'][sort].values()):.2f}" for sort in (SAME_WORDS, OTHERS))
    before, now = row["held_out_losses"]
    losses = f"{row['train_losses'][1]:.3f}", f"{before:.3f} to {now:.3f}"
    return row["kind"], f"{row['rate']:g}", str(row["step"]), *falls, *spill, *losses


def main() -> None:
    asked, began = options(), time.monotonic()
    if asked.table is not None:
        print(table(json.loads(asked.table.read_text("utf-8"))))
        return
    sizes = Sizes(clips=asked.clips, plain=asked.plain, held_out=asked.held_out, seconds=asked.seconds)
    with tempfile.TemporaryDirectory() as place:
        data = dataset(Path(place), sizes, asked.weights, asked.device)
        ear = Ear.of(data, asked.device, asked.cfg, asked.sampler_steps)
        floor, chance = style_distances(ear.reconstructed(), data.wanted_BAX), chance_distances(data.wanted_BAX)
        del ear
        print(f"{vars(asked)}\nencoded after {time.monotonic() - began:.0f} s, weights in {data.weights.folder}")
        print(f"held-out clips from their reconstruction: {by_way(floor)}; between halves of them: {by_way(chance)}")
        print(HEADER)
        figures: dict[str, Any] = {"asked": vars(asked), "chance": chance, "floor": floor, "rows": []}
        for rows in results(asked, data, began):
            print(*map(line, rows), sep="\n", flush=True)
            figures["rows"] += rows
            if asked.out is not None:
                asked.out.write_text(json.dumps(figures, indent=1, default=str), encoding="utf-8")
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
