"""bora-xs: R = diag(m_r / |V|_row) V, W' = R diag(m_c / |R|_col), with V = W + s U M Z^T: bora on the basis of lora-xs.

Trained per layer: `M_xs` (rank, rank), `magnitude_r` (out,), `magnitude_c` (in,).
Light: names its two axes only.
"""

from stages.adapters.kind import BOTH, SVD, Kind

KIND = Kind(basis=SVD, magnitude=BOTH)
