"""An adapter kind as a combination of two axes: basis and magnitude. Light: torch is imported when one is loaded.

A kind adds a low-rank update to a frozen weight W (out x in), V = W + s L R with s = strength * alpha / rank, and may
then rescale the rows (output features) or columns (input features) of V to trained 2-norms, the magnitudes.

    basis      free        L R = B A, both trained                           (Hu et al. 2021, arXiv:2106.09685)
               svd         L R = U M Z^T, M trained between singular vectors (Balazy et al. 2024, arXiv:2405.17604)
    magnitude  none        W' = V
               output      every row of V has a trained norm                 (Liu et al. 2024, arXiv:2402.09353)
               input       every column of V has a trained norm
               both        rows first, then columns of the result            (Wang et al. 2024, arXiv:2412.06441)
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stages import catalogue


@dataclass(frozen=True, kw_only=True)
class LazyClass:
    """A class named "module:class" and imported only when it is needed."""

    entry: str

    def load(self) -> Any:
        """Import and return the class; this is what may import torch."""
        module, name = self.entry.split(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Basis(LazyClass):
    """First axis: where the low-rank directions come from."""

    singular: bool
    """Directions are singular vectors of the weight: they limit the rank, and dropout does not apply."""


@dataclass(frozen=True, kw_only=True)
class Magnitude(LazyClass):
    """Second axis: which rows or columns of the weight get trained norms."""

    output: bool = False
    """Rows: one magnitude per output feature."""
    input: bool = False
    """Columns: one magnitude per input feature."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An adapter kind; each file of `kinds/` defines one as `KIND`."""

    basis: Basis
    magnitude: Magnitude

    @property
    def has_output_magnitude(self) -> bool:
        """Whether every row of the weight has a trained norm."""
        return self.magnitude.output

    @property
    def has_input_magnitude(self) -> bool:
        """Whether every column of the weight has a trained norm."""
        return self.magnitude.input

    @property
    def has_magnitude(self) -> bool:
        """Whether rows, columns or both have trained norms."""
        return self.has_output_magnitude or self.has_input_magnitude


FREE = Basis(entry="stages.adapters.basis:FreeBasis", singular=False)
SVD = Basis(entry="stages.adapters.basis:SvdBasis", singular=True)

NONE = Magnitude(entry="stages.adapters.magnitude:NoMagnitude")
OUTPUT = Magnitude(entry="stages.adapters.magnitude:OutputMagnitude", output=True)
INPUT = Magnitude(entry="stages.adapters.magnitude:InputMagnitude", input=True)
BOTH = Magnitude(entry="stages.adapters.magnitude:BothMagnitudes", output=True, input=True)


def kind_named(name: str) -> Kind:
    """The kind with this name, as users write it: `dora-rows`.

    Raises:
        ValueError: no such kind; the message lists the known ones.
    """
    if name not in catalogue.adapter_kinds():
        raise ValueError(f"adapter_type must be one of {', '.join(catalogue.adapter_kinds())}; got {name!r}")
    kind: Kind = catalogue.load("adapters.kinds", name.replace("-", "_")).KIND
    return kind
