"""What libraries report while they are imported, and nobody here can act on. Light: standard library only."""

from __future__ import annotations

import logging

_LOGGERS = ("torchao", "torch.utils._pytree")


def quiet_torchao() -> None:
    """Before importing it, or transformers, which does where it is installed.

    It warns of compiled kernels that do not load on this machine, none of which is called, and torch of how it
    registers its classes. Errors still come through.
    """
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
