"""lora-xs: W' = W + s U M Z^T, s = alpha / rank (Balazy et al. 2024, arXiv:2405.17604, sec. 3).

U (out, rank) and Z (in, rank) are the leading singular vectors of W, frozen; singular values are not absorbed.
Trained per layer: `M_xs` (rank, rank), zero at the start.
Light: names its two axes only.
"""

from stages.adapters.kind import NONE, SVD, Kind

KIND = Kind(basis=SVD, magnitude=NONE)
