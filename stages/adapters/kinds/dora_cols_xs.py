"""dora-cols-xs: W' = V diag(m / |V|_col) with V = W + s U M Z^T: the magnitudes of dora-cols on the basis of lora-xs.

Trained per layer: `M_xs` (rank, rank), `magnitude` (in,).
Light: names its two axes only.
"""

from stages.adapters.kind import INPUT, SVD, Kind

KIND = Kind(basis=SVD, magnitude=INPUT)
