"""dora-cols: W' = V diag(m / |V|), V = W + s B A, |V| the 2-norm of each column (Liu et al. 2024, arXiv:2402.09353).

Trained per layer: `lora_A` (rank, in), `lora_B` (out, rank), `magnitude` (in,), one norm per input feature.
The paper writes W as (in, out) and norms over its columns; torch stores (out, in), so this is its transpose.
Light: names its two axes only.
"""

from stages.adapters.kind import FREE, INPUT, Kind

KIND = Kind(basis=FREE, magnitude=INPUT)
