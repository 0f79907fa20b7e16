"""Leading singular vectors of frozen weights, for the -xs kinds: a deterministic SVD and a cache of its results.

Letters: O output features, I input features, K singular vectors kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache.files.atomic_files import atomic_write_bytes
from stages.errors import AdapterMismatch, SingularVectorsDamaged

NUM_KEPT = 256
"""Vectors cached per weight: the largest rank the product allows, so that no change of rank needs a new SVD."""


@dataclass(frozen=True, kw_only=True)
class SingularVectors:
    """Leading singular vectors of a weight as columns, float32 on the CPU, by decreasing singular value."""

    U_OK: Tensor
    V_IK: Tensor

    @property
    def count(self) -> int:
        """Number of vectors on each side."""
        return self.U_OK.shape[1]


class SingularVectorCache(Protocol):
    """Stores singular vectors between runs, by the digest of the weight."""

    def get(self, digest: str, rank: int) -> SingularVectors | None:
        """At least the first `rank` vectors, or None if they are not stored."""

    def put(self, digest: str, vectors: SingularVectors) -> None:
        """Store these."""


def leading_singular_vectors(weight_OI: Tensor, rank: int, cache: SingularVectorCache | None = None) -> SingularVectors:
    """The leading `rank` or more singular vectors of a weight, from the cache if it has them.

    Args:
        weight_OI: as the base's file stores it; rank is at most its smaller dimension.
    """
    if cache is None:
        return singular_vectors(weight_OI)
    digest = weight_digest(weight_OI)
    known = cache.get(digest, rank)
    if known is not None:
        return known
    found = singular_vectors(weight_OI)
    cache.put(digest, found)
    return found


def singular_vectors(weight_OI: Tensor) -> SingularVectors:
    """Thin SVD in float32 on the CPU, with signs fixed by a rule instead of by the library.

    In every column of U the entry of largest magnitude (the first of equals) is made positive; the column of V follows.
    """
    U_OK, _, Vh_KI = torch.linalg.svd(weight_OI.detach().to("cpu", torch.float32), full_matrices=False)
    peak_K = U_OK.gather(0, U_OK.abs().argmax(dim=0, keepdim=True))[0]
    sign_K = torch.where(peak_K < 0, -1.0, 1.0)
    return SingularVectors(U_OK=U_OK * sign_K, V_IK=Vh_KI.T * sign_K)


def weight_digest(weight_OI: Tensor) -> str:
    """64 hex digits over dtype, shape and bytes of a weight."""
    stored = weight_OI.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{stored.dtype} {tuple(stored.shape)} ".encode())
    digest.update(stored.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class SingularVectorFolder:
    """A `SingularVectorCache` in a folder: one safetensors file per weight, written aside and renamed.

    Vectors are stored as rows, so that a small rank reads only part of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, digest: str, rank: int) -> SingularVectors | None:
        """At least the first `rank` vectors, or None. Raises: SingularVectorsDamaged when its file is unreadable."""
        path = self._path(digest)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                slices = file.get_slice("U_KO"), file.get_slice("V_KI")
                U_KO, V_KI = slices[0][:rank], slices[1][:rank]
                known = {one.get_shape()[0] for one in slices}
        except (SafetensorError, OSError, KeyError) as error:
            raise SingularVectorsDamaged(str(path), str(error)) from error
        if len(known) != 1 or not (U_KO.isfinite().all() and V_KI.isfinite().all()):
            raise SingularVectorsDamaged(str(path), "its vectors do not belong together or are not finite")
        return SingularVectors(U_OK=U_KO.T, V_IK=V_KI.T) if known.pop() >= rank else None

    def put(self, digest: str, vectors: SingularVectors) -> None:
        """Store the leading vectors. Raises: cache.errors.WriteFailed."""
        rows = {"U_KO": vectors.U_OK[:, :NUM_KEPT].T.contiguous(), "V_KI": vectors.V_IK[:, :NUM_KEPT].T.contiguous()}
        atomic_write_bytes(self._path(digest), save(rows))

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def singular_vectors_from(
    given: Mapping[str, Mapping[str, Tensor]], shapes: Mapping[str, tuple[int, int]], rank: int
) -> dict[str, SingularVectors]:
    """The layers' singular vectors out of a dict of them by checkpoint key, signs unchanged.

    Args:
        given: per weight a dict with `U` (out, k) and `V` (in, k), vectors as columns, k at least the rank. Keys end in
            `.weight` and are relative to their root (`model.project_in.weight`) or whole checkpoint names
            (`model.model.project_in.weight`, `conditioner.conditioners...weight`).
        shapes: (out, in) of each targeted layer.

    Raises:
        AdapterMismatch: lists every layer that is missing, misshapen, too narrow for the rank, or not finite.
    """
    found: dict[str, SingularVectors] = {}
    faults: list[str] = []
    for name, shape in shapes.items():
        keys = [f"{root}{name}.weight" for root in ("", "model.", "conditioner.")]
        entry = next((given[key] for key in keys if key in given), None)
        fault = "missing" if entry is None else _fault(entry, shape, rank)
        if entry is None or fault:
            faults.append(f"{name}: {fault}")
        else:
            found[name] = SingularVectors(U_OK=entry["U"].float().cpu(), V_IK=entry["V"].float().cpu())
    if faults:
        raise AdapterMismatch("the file of singular vectors", faults)
    return found


def _fault(entry: Mapping[str, Tensor], shape: tuple[int, int], rank: int) -> str:
    for side, size in zip("UV", shape, strict=True):
        if side not in entry:
            return f"{side} is missing"
        tensor = entry[side]
        if tensor.ndim != 2 or tensor.shape[0] != size or tensor.shape[1] < rank:
            return f"{side} is {tuple(tensor.shape)}, expected ({size}, {rank} or more)"
        if not tensor.isfinite().all():
            return f"{side} holds NaN or infinity"
    return ""
