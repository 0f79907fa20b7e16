"""Fields of a request that change where and how fast, never what."""

from __future__ import annotations

import re

from pipeline.request.field import Field

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")

PLACES = (
    Field(
        name="weights",
        kind="str",
        default=None,
        nullable=True,
        where="place",
        help="checkpoint folder; or SA3_WEIGHTS",
    ),
    Field(
        name="store",
        kind="str",
        default="artifacts",
        where="place",
        help="folder of finished artifacts and latents",
    ),
    Field(
        name="output",
        kind="str",
        default="output",
        where="place",
        help="folder the adapter and its config are copied to",
    ),
    Field(
        name="name",
        kind="str",
        default=None,
        nullable=True,
        check=lambda text: "must be a name, not a path" if re.search(r"[/\\]", text) else None,
        where="place",
        help="name of the output files; unset: the data's",
    ),
)

RESOURCES = (
    Field(
        name="device",
        kind="str",
        default="auto",
        check=lambda text: None if DEVICE.fullmatch(text) else "must be auto, cpu, cuda, cuda:1 and so on, or mps",
        where="resource",
        help="auto, cpu, cuda, cuda:1 or mps",
    ),
    Field(
        name="workers",
        kind="int",
        default=0,
        limits={"ge": 0},
        where="resource",
        help="processes of ingest (0: one per core), and that read ahead without pre_encode (0: half the cores, at "
        "most 4, none for less than 30 minutes of audio)",
    ),
    Field(
        name="threads",
        kind="int",
        default=0,
        limits={"ge": 0},
        where="resource",
        help="CPU threads of torch; 0: its own choice",
    ),
    Field(
        name="checkpoint_every",
        kind="int",
        default=500,
        limits={"ge": 1},
        where="resource",
        help="steps between checkpoints; the last step is always saved",
    ),
    Field(
        name="keep_checkpoints",
        kind="int",
        default=2,
        limits={"ge": 1},
        where="resource",
        help="checkpoints kept while training",
    ),
    Field(
        name="log_every",
        kind="int",
        default=50,
        limits={"ge": 1},
        where="resource",
        help="steps between progress lines",
    ),
    Field(
        name="fast_path",
        kind="choice",
        default="auto",
        choices=lambda: ["auto", "off"],
        where="resource",
        help="compiled and recorded steps on CUDA; off: operation by operation, at once and slowly",
    ),
    Field(
        name="gradient_checkpointing",
        kind="choice",
        default="auto",
        choices=lambda: ["auto", "on", "off"],
        where="resource",
        help="recompute blocks in the backward pass, for less memory; auto: when it is short",
    ),
    Field(
        name="engine",
        kind="choice",
        default="loky",
        choices=lambda: ["loky", "threading", "dask", "ray"],
        where="resource",
        help="joblib backend of ingest",
    ),
)
