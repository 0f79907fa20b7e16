"""Names of precisions, and the dtypes they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.models.device import dtype_named, precision_of
from stages.precision import DTYPE_NAMES, PRECISIONS


@pytest.mark.parametrize("name", PRECISIONS)
def test_both_names_of_a_precision_stand_for_the_same_dtype(name):
    dtype = dtype_named(name)
    assert dtype is dtype_named(PRECISIONS[name]) is getattr(torch, DTYPE_NAMES[PRECISIONS[name]])
    assert precision_of(dtype) == PRECISIONS[name]


@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_numpy_knows_the_storage_precisions_by_the_same_names(name):
    assert np.dtype(DTYPE_NAMES[name]).itemsize == dtype_named(name).itemsize
