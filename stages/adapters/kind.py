"""What an adapter kind is: a basis and a magnitude. Light: torch is imported when an adapter is attached.

A kind moves a frozen weight W (out x in) along a low-rank direction, V = W + s L R with s = strength * alpha / rank,
and may then give the rows (output features) or columns (input features) of V a trained length.

    basis      free        L R = B A, both trained                           (Hu et al. 2021, arXiv:2106.09685)
               svd         L R = U M Z^T, M trained between singular vectors (Balazy et al. 2024, arXiv:2405.17604)
    magnitude  none        W' = V
               output      every row of V gets its trained length            (Liu et al. 2024, arXiv:2402.09353)
               input       every column of V gets its trained length
               both        rows first, then columns of the result            (Wang et al. 2024, arXiv:2412.06441)
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stages import catalogue


@dataclass(frozen=True, kw_only=True)
class Part:
    """One value of an axis: "module:class" of the torch module that does it."""

    entry: str

    def load(self) -> Any:
        """The class; this import is what may load torch."""
        module, name = self.entry.split(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Basis(Part):
    """Where the low-rank directions come from."""

    singular: bool
    """Its directions are singular vectors of the weight: they bound the rank, and dropout has nothing to thin."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An adapter kind; each file of `kinds/` holds one as `KIND`."""

    basis: Basis
    magnitude: Part


FREE = Basis(entry="stages.adapters.basis:FreeBasis", singular=False)
SVD = Basis(entry="stages.adapters.basis:SvdBasis", singular=True)

NONE = Part(entry="stages.adapters.magnitude:NoMagnitude")
OUTPUT = Part(entry="stages.adapters.magnitude:OutputMagnitude")
INPUT = Part(entry="stages.adapters.magnitude:InputMagnitude")
BOTH = Part(entry="stages.adapters.magnitude:BothMagnitudes")


def kind_named(name: str) -> Kind:
    """The kind users write as `dora-rows`.

    Raises:
        ValueError: no such kind; the message lists those there are.
    """
    if name not in catalogue.adapter_kinds():
        raise ValueError(f"adapter_type must be one of {', '.join(catalogue.adapter_kinds())}; got {name!r}")
    kind: Kind = catalogue.load("adapters.kinds", name.replace("-", "_")).KIND
    return kind
