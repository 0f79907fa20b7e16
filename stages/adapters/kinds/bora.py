"""bora: R = diag(m_r / |V|_row) V, W' = R diag(m_c / |R|_col), V = W + s B A (Wang et al. 2024, arXiv:2412.06441).

Trained per layer: `lora_A` (rank, in), `lora_B` (out, rank), `magnitude_r` (out,), `magnitude_c` (in,).
Rows first, then the columns of the result: the column norms of W' are exactly m_c, its row norms are not m_r.
Light: names its two axes only.
"""

from stages.adapters.kind import BOTH, FREE, Kind

KIND = Kind(basis=FREE, magnitude=BOTH)
