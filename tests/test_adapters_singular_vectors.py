"""Singular vectors: the sign rule, vectors passed in, and the cache between runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.adapters import singular_vectors as module
from stages.adapters.attach import attach
from stages.adapters.singular_vectors import (
    SingularVectorFolder,
    leading_singular_vectors,
    singular_vectors,
    singular_vectors_from,
    weight_digest,
)
from stages.errors import AdapterMismatch, RankTooLarge, SingularVectorsDamaged
from stages.records import AdapterSpec
from tests.dense_adapters import NET_LAYERS, Net


def some_weight(num_out: int = 9, num_in: int = 6) -> torch.Tensor:
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def counted(monkeypatch):
    """Counts SVDs."""
    calls = []
    real = module.singular_vectors
    monkeypatch.setattr(module, "singular_vectors", lambda weight: calls.append(weight.shape) or real(weight))
    return calls


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (5, 5)])
def test_the_vectors_are_orthonormal_and_diagonalise_the_weight(shape):
    weight = some_weight(*shape)
    bases = singular_vectors(weight)
    eye = torch.eye(min(shape))
    torch.testing.assert_close(bases.U_OK.T @ bases.U_OK, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(bases.V_IK.T @ bases.V_IK, eye, rtol=0, atol=1e-5)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(bases.U_OK.T @ weight @ bases.V_IK, values.diag(), rtol=0, atol=1e-5)


def test_the_largest_entry_of_every_left_vector_is_positive_even_if_the_weight_changes_sign():
    plain, negated = singular_vectors(some_weight()), singular_vectors(-some_weight())
    for bases in (plain, negated):
        peaks = bases.U_OK.gather(0, bases.U_OK.abs().argmax(dim=0, keepdim=True))
        assert (peaks > 0).all()
    torch.testing.assert_close(plain.U_OK, negated.U_OK, rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.V_IK, -negated.V_IK, rtol=0, atol=1e-5)


def test_of_equal_largest_entries_the_first_decides_the_sign():
    bases = singular_vectors(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    assert bases.U_OK[0, 0] > 0 > bases.U_OK[1, 0]


def test_a_bf16_weight_is_decomposed_as_rounded():
    rounded = some_weight().bfloat16()
    assert torch.equal(singular_vectors(rounded).U_OK, singular_vectors(rounded.float()).U_OK)


def test_the_digest_covers_bytes_dtype_and_shape():
    weight = some_weight()
    digests = {
        weight_digest(weight),
        weight_digest(weight.reshape(6, 9)),
        weight_digest(weight.bfloat16()),
        weight_digest(weight + 1e-6),
    }
    assert len(digests) == 4
    assert weight_digest(weight.T.contiguous().T) == weight_digest(weight)


def test_a_second_run_of_any_rank_computes_no_svd(tmp_path, counted):
    net = Net()
    for rank in (2, 5):
        attach(
            [net],
            AdapterSpec(kind="bora-xs", rank=rank, alpha=1.0),
            singular_vector_cache=SingularVectorFolder(tmp_path),
        ).detach()
    assert len(counted) == len(NET_LAYERS)


def test_cached_vectors_equal_the_computed_ones(tmp_path):
    cache = SingularVectorFolder(tmp_path)
    computed, recalled = (leading_singular_vectors(some_weight(), 4, cache) for _ in range(2))
    assert recalled.count == 4
    assert torch.equal(recalled.U_OK, computed.U_OK[:, :4])
    assert torch.equal(recalled.V_IK, computed.V_IK[:, :4])


def test_more_vectors_than_are_cached_are_recomputed(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(module, "NUM_KEPT", 3)
    cache = SingularVectorFolder(tmp_path)
    assert [leading_singular_vectors(some_weight(), rank, cache).count >= rank for rank in (2, 3, 5)] == [True] * 3
    assert len(counted) == 2


def test_the_same_vectors_give_the_same_file(tmp_path):
    for folder in ("a", "b"):
        leading_singular_vectors(some_weight(), 2, SingularVectorFolder(tmp_path / folder))
    (first,), (second,) = ((tmp_path / folder).iterdir() for folder in ("a", "b"))
    assert first.name == second.name and first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"", lambda content: content[:-4] + b"\xff" * 4]
)
def test_a_damaged_file_is_an_error_that_says_what_to_delete(tmp_path, damage):
    cache = SingularVectorFolder(tmp_path)
    leading_singular_vectors(some_weight(), 6, cache)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SingularVectorsDamaged, match=f"{path.name}.*Delete this file"):
        leading_singular_vectors(some_weight(), 6, cache)


def bases_file(net: nn.Module, key: str, columns: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """Vectors with flipped signs, which differ from computed ones."""
    found = {name: singular_vectors(net.get_submodule(name).weight.flatten(1)) for name in NET_LAYERS}
    return {
        key.format(name): {"U": -bases.U_OK[:, :columns], "V": -bases.V_IK[:, :columns]}
        for name, bases in found.items()
    }


@pytest.mark.parametrize("key", ["{}.weight", "model.{}.weight", "conditioner.{}.weight"])
def test_given_vectors_are_used_unchanged_under_every_style_of_key(key, counted):
    net = Net()
    given = bases_file(net, key)
    attach([net], AdapterSpec(kind="lora-xs", rank=3, alpha=1.0), singular_vectors=given)
    for name in NET_LAYERS:
        basis = net.get_submodule(name).slots[0].basis
        assert torch.equal(basis.U, given[key.format(name)]["U"][:, :3])
        assert torch.equal(basis.V, given[key.format(name)]["V"][:, :3])
    assert counted == []


def test_given_vectors_may_be_16_bit():
    net = Net()
    given = {key: {side: t.half() for side, t in entry.items()} for key, entry in bases_file(net, "{}.weight").items()}
    attach([net], AdapterSpec(kind="lora-xs", rank=3, alpha=1.0), singular_vectors=given)
    assert net.conv.slots[0].basis.U.dtype == torch.float32


def test_every_layer_that_given_vectors_do_not_fit_is_listed():
    net = Net()
    given = bases_file(net, "{}.weight", columns=2)
    given.pop("inner.2.weight")
    given["conv.weight"] = {"U": torch.full((5, 4), torch.nan), "V": torch.ones(6, 4)}
    shapes = {"inner.0": (6, 7), "inner.2": (6, 6), "conv": (5, 6)}
    with pytest.raises(AdapterMismatch) as caught:
        singular_vectors_from(given, shapes, 3)
    assert caught.value.differences == (
        "inner.0: U is (6, 2), expected (6, 3 or more)",
        "inner.2: missing",
        "conv: U holds NaN or infinity",
    )


def test_vectors_for_a_kind_that_uses_none_are_refused():
    with pytest.raises(ValueError, match="uses none"):
        attach([Net()], AdapterSpec(kind="lora", rank=3, alpha=1.0), singular_vectors={})


def test_a_rank_above_the_smallest_targeted_dimension_names_the_layer():
    with pytest.raises(RankTooLarge, match=r"at most 5 here; got 6\. conv"):
        attach([Net()], AdapterSpec(kind="dora-rows-xs", rank=6, alpha=1.0))
    attach([Net()], AdapterSpec(kind="dora-rows-xs", rank=6, alpha=1.0, exclude=("conv",)))
