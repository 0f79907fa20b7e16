"""dora: the older name of dora-rows; the same maths and tensors.

In old files the name may also stand for dora-cols: the shape of the magnitudes decides, see `adapter_file`.
Light: names its two axes only.
"""

from stages.adapters.kinds.dora_rows import KIND

__all__ = ["KIND"]
