"""lora: y = W' x with W' = W + s B A, s = alpha / rank (Hu et al. 2021, arXiv:2106.09685, sec. 4.1).

Trained per layer: `lora_A` (rank, in), `lora_B` (out, rank). B starts at zero, so training starts at the base.
Light: names its two axes only.
"""

from stages.adapters.kind import FREE, NONE, Kind

KIND = Kind(basis=FREE, magnitude=NONE)
