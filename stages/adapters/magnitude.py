"""Second axis of the adapter kinds: which rows or columns of the adapted weight are rescaled to trained norms.

Each magnitude is a module whose parameters carry the names of the file format. They start as the norms of the frozen
weight, so training starts at the base. Its flags say what the norms need besides L and R: squared row or column norms
of W (`needs_squares`), W R^T (`needs_weight_right`), L^T W (`needs_left_weight`).
"""

from __future__ import annotations

from torch import nn

from stages.adapters.basis import LayerInit
from stages.adapters.factored_weight import FactoredWeight, guarded_sqrt, squares


class NoMagnitude(nn.Module):
    """W' = V."""

    needs_squares = needs_weight_right = needs_left_weight = False

    def __init__(self, init: LayerInit) -> None:
        super().__init__()

    def forward(self, updated: FactoredWeight) -> FactoredWeight:
        return updated


class OutputMagnitude(nn.Module):
    """Every row of V is rescaled to a trained norm (DoRA with torch's (out, in) weights)."""

    needs_squares = needs_weight_right = True
    needs_left_weight = False

    def __init__(self, init: LayerInit) -> None:
        super().__init__()
        self.magnitude = nn.Parameter(guarded_sqrt(squares(init.weight_OI)[0]))

    def forward(self, updated: FactoredWeight) -> FactoredWeight:
        return updated.with_row_magnitudes(self.magnitude)


class InputMagnitude(nn.Module):
    """Every column of V is rescaled to a trained norm."""

    needs_squares = needs_left_weight = True
    needs_weight_right = False

    def __init__(self, init: LayerInit) -> None:
        super().__init__()
        self.magnitude = nn.Parameter(guarded_sqrt(squares(init.weight_OI)[1]))

    def forward(self, updated: FactoredWeight) -> FactoredWeight:
        return updated.with_column_magnitudes(self.magnitude)


class BothMagnitudes(nn.Module):
    """Rows of V are rescaled first, then the columns of the result (BoRA)."""

    needs_squares = needs_weight_right = True
    needs_left_weight = False  # column norms are those of diag(p) W, whose products change with p

    def __init__(self, init: LayerInit) -> None:
        super().__init__()
        self.magnitude_r = nn.Parameter(guarded_sqrt(squares(init.weight_OI)[0]))
        self.magnitude_c = nn.Parameter(guarded_sqrt(squares(init.weight_OI)[1]))

    def forward(self, updated: FactoredWeight) -> FactoredWeight:
        return updated.with_row_magnitudes(self.magnitude_r).with_column_magnitudes(self.magnitude_c)
