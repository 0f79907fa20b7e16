"""Names of floating-point precisions: short ones for users, torch's and numpy's own. Light: standard library only."""

from __future__ import annotations

DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What torch and numpy call each precision."""

PRECISIONS = {name: short for short, long in DTYPE_NAMES.items() for name in (short, long)}
"""The short name of every name a request may use: `float16` is `fp16`."""
