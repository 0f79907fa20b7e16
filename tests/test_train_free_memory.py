"""Free memory of the host, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.errors import OutOfMemory
from stages.models.device import explain_out_of_memory, is_out_of_memory
from stages.train.forecast import free_memory
from stages.train.forecast.free_memory import free_bytes, host_bytes

GIB = 1 << 30
AVAILABLE = 8 * GIB


@pytest.fixture
def machine(tmp_path) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup of a machine with 8 GiB available."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {AVAILABLE // 1024} kB\n")
    return proc, cgroups


def second(folder: Path, most: object, used: int, droppable: int = 0) -> None:
    """A group of the second version."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("max", most), ("current", used), ("stat", f"anon 5\ninactive_file {droppable}")):
        (folder / f"memory.{name}").write_text(f"{value}\n")


def first(folder: Path, most: int, used: int, droppable: int = 0) -> None:
    """A group of the first version."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = {"limit_in_bytes": most, "usage_in_bytes": used, "stat": f"total_inactive_file {droppable}"}
    for name, value in lines.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def test_without_control_groups_it_is_what_linux_counts_as_available(machine):
    assert host_bytes(*machine) == AVAILABLE


@pytest.mark.parametrize("path", ["/", "/made/by/a/container"])
def test_a_limit_of_the_group_or_of_one_above_it_counts_less_what_is_used_and_cannot_be_dropped(machine, path):
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text(f"0::{path}\n")
    second(cgroups, 4 * GIB, 3 * GIB, droppable=GIB)
    assert host_bytes(proc, cgroups) == 2 * GIB


def test_the_narrowest_of_nested_groups_counts(machine):
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    second(cgroups / "outer", 3 * GIB, GIB)
    second(cgroups / "outer" / "inner", "max", GIB)
    assert host_bytes(proc, cgroups) == 2 * GIB


def test_limits_of_the_first_version_count_too(machine):
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("5:devices:/x\n4:memory,cpu:/job\n")
    first(cgroups / "memory" / "job", 2 * GIB, GIB, droppable=GIB // 2)
    first(cgroups / "memory", 9223372036854771712, 5)
    assert host_bytes(proc, cgroups) == 3 * GIB // 2


def test_a_group_over_its_limit_has_nothing_left(machine):
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("0::/\n")
    second(cgroups, GIB, 2 * GIB)
    assert host_bytes(proc, cgroups) == 0


def test_where_linux_tells_nothing_it_is_half_of_the_machine_or_unknown(tmp_path, monkeypatch):
    found = host_bytes(tmp_path / "proc", tmp_path / "cgroup")
    assert found is not None and found > 0
    monkeypatch.delattr(free_memory.os, "sysconf")
    assert host_bytes(tmp_path / "proc", tmp_path / "cgroup") is None


def test_this_machine_has_some_left():
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 1 << 20


def test_on_cuda_memory_that_torch_holds_without_using_it_is_free_as_well(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    assert free_bytes(torch.device("cuda")) == 7 * GIB


def test_what_is_left_of_a_limit_on_addresses_counts(machine, monkeypatch):
    resource = pytest.importorskip("resource")
    proc, cgroups = machine
    (proc / "self" / "status").write_text(f"Name: x\nVmSize:\t {2 * GIB // 1024} kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (3 * GIB, 4 * GIB))
    assert host_bytes(proc, cgroups) == GIB
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (GIB, GIB))
    assert host_bytes(proc, cgroups) == 0
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert host_bytes(proc, cgroups) == AVAILABLE


def test_an_allocation_that_the_cpu_refuses_is_reported_as_out_of_memory():
    expected = pytest.raises(OutOfMemory, match="cpu ran out of memory while asking for too much")
    with expected, explain_out_of_memory("asking for too much", torch.device("cpu")):
        torch.empty(1 << 60, dtype=torch.int8)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: ..."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_out_of_memory_is_distinguished_from_other_errors(error, short):
    assert is_out_of_memory(error) is short


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory("multiplying", torch.device("cpu")):
        torch.empty(2, 3) @ torch.empty(2, 3)
