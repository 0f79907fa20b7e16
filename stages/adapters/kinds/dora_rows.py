"""dora-rows: W' = diag(m / |V|) V, V = W + s B A, |V| the 2-norm of each row (Liu et al. 2024, arXiv:2402.09353).

Trained per layer: `lora_A` (rank, in), `lora_B` (out, rank), `magnitude` (out,), one norm per output feature.
The magnitudes start as the row norms of W, so training starts at the base.
Light: names its two axes only.
"""

from stages.adapters.kind import FREE, OUTPUT, Kind

KIND = Kind(basis=FREE, magnitude=OUTPUT)
