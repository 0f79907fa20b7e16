"""dora-rows-xs: W' = diag(m / |V|_row) V with V = W + s U M Z^T: the magnitudes of dora-rows on the basis of lora-xs.

Trained per layer: `M_xs` (rank, rank), `magnitude` (out,).
Light: names its two axes only.
"""

from stages.adapters.kind import OUTPUT, SVD, Kind

KIND = Kind(basis=SVD, magnitude=OUTPUT)
