"""Silences warnings of third-party libraries at import that users cannot act on. Light: standard library only."""

from __future__ import annotations

import logging

_LOGGERS = ("torchao", "torch.utils._pytree")


def quiet_torchao() -> None:
    """Hide import-time warnings of torchao; call before importing it, or transformers, which imports it.

    torchao warns about compiled kernels that cannot be loaded here and are never called, and PyTorch about how torchao
    registers its classes. Errors are still shown.
    """
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
