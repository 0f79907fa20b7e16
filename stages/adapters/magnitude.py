"""The second axis of the adapter kinds: which rows or columns of V are given a trained length.

Each is a small module whose parameters carry the names of the file format. Letters: O out features, I in features.
"""

from __future__ import annotations

from torch import nn

from stages.adapters.basis import Start
from stages.adapters.factored_weight import Factored, guarded_sqrt, squares


class NoMagnitude(nn.Module):
    """W' = V."""

    uses_squares = uses_weight_right = uses_left_weight = False

    def __init__(self, start: Start) -> None:
        super().__init__()

    def forward(self, moved: Factored) -> Factored:
        return moved


class OutputMagnitude(nn.Module):
    """Every row of V gets a trained length, at first that of the same row of W."""

    uses_squares = uses_weight_right = True
    uses_left_weight = False

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.magnitude = nn.Parameter(guarded_sqrt(squares(start.weight_OI)[0]))

    def forward(self, moved: Factored) -> Factored:
        return moved.with_row_lengths(self.magnitude)


class InputMagnitude(nn.Module):
    """Every column of V gets a trained length, at first that of the same column of W."""

    uses_squares = uses_left_weight = True
    uses_weight_right = False

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.magnitude = nn.Parameter(guarded_sqrt(squares(start.weight_OI)[1]))

    def forward(self, moved: Factored) -> Factored:
        return moved.with_column_lengths(self.magnitude)


class BothMagnitudes(nn.Module):
    """Rows first, then the columns of the result; at first the lengths of W's own rows and columns."""

    uses_squares = uses_weight_right = True
    uses_left_weight = False  # the columns are those of diag(p) W: their products change with p

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.magnitude_r = nn.Parameter(guarded_sqrt(squares(start.weight_OI)[0]))
        self.magnitude_c = nn.Parameter(guarded_sqrt(squares(start.weight_OI)[1]))

    def forward(self, moved: Factored) -> Factored:
        return moved.with_row_lengths(self.magnitude_r).with_column_lengths(self.magnitude_c)
