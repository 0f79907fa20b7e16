"""Every field of a request, once: the flags, the recipe TOML and the validation are all made from these tables."""

from __future__ import annotations

from pipeline.request.field import Field
from pipeline.request.resource_fields import PLACES, RESOURCES
from pipeline.request.training_fields import OPTIONS
from stages import catalogue
from stages.precision import PRECISIONS

REQUEST = (
    Field(
        name="model",
        kind="choice",
        default="medium-base",
        choices=lambda: sorted(catalogue.models()),
        help="base checkpoint to fine-tune",
    ),
    Field(name="number_of_steps", kind="int", default=1000, limits={"ge": 1, "le": 20_000}, help="optimiser steps"),
    Field(
        name="learning_rate",
        kind="float",
        default=1e-4,
        limits={"gt": 0, "le": 0.01},
        help="full learning rate of the adapter; prodigy takes it as a factor, 0.0001 being 1",
    ),
    Field(
        name="rank",
        kind="int",
        default=16,
        limits={"ge": 1, "le": 256},
        help="adapter rank; -xs kinds: at most the smallest layer dimension",
    ),
    Field(
        name="adapter_type", kind="choice", default="dora-rows", choices=catalogue.adapter_kinds, help="adapter kind"
    ),
    Field(
        name="duration",
        kind="float",
        default=None,
        nullable=True,
        limits={"ge": 1, "le": 380},
        help="crop/pad length in seconds, capped at the model's native length, as a line says; unset: longest clip",
    ),
    Field(name="batch_size", kind="int", default=1, limits={"ge": 1, "le": 8}, help="clips per step"),
    Field(
        name="seed",
        kind="int",
        default=42,
        limits={"ge": 0, "le": 2_147_483_647},
        help="same seed and inputs, same adapter",
    ),
    Field(
        name="base_precision",
        kind="choice",
        default="bf16",
        choices=lambda: list(PRECISIONS),
        help="precision of the frozen base; the adapter stays fp32",
    ),
    Field(
        name="include",
        kind="names",
        default=None,
        nullable=True,
        help="adapt only modules whose name contains one of these; [a-b] ranges",
    ),
    Field(
        name="exclude",
        kind="names",
        default=None,
        nullable=True,
        help="skip modules whose name contains one of these; [a-b] ranges",
    ),
    Field(
        name="lora_checkpoint_url",
        kind="str",
        default=None,
        nullable=True,
        help="adapter .safetensors to continue from",
    ),
    Field(
        name="pre_encode",
        kind="bool",
        default=False,
        help="train from cached latents instead of encoding inside the loop",
    ),
)
"""The hosted trainer's."""

FIELDS = (*REQUEST, *OPTIONS, *PLACES, *RESOURCES)
