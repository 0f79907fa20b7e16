"""The parity framework: compares our networks, adapters and training step with recordings of the public reference.

A golden folder holds family folders; a family folder holds `index.json`, `model_config.json`, `model.safetensors`, the
text encoder's folder, `cases/*.safetensors` and `adapters/*.safetensors`. The frame knows that layout and nothing else:
no sizes, seeds or family names, so another set of the same layout runs unchanged.

Every module beside this one registers checkers by a regular expression on the whole case name:

    @checks(r"same_encode_.*")
    def encoded(family: Family, case: Case) -> Iterator[Comparison]:
        yield compare(case, "latents_raw", autoencoder.encode(case.tensors["audio"]))

Besides the recorded cases, files of a family that hold expectations of their own are cases too, named `file:<stem>`
with the parsed JSON as params: `file:adapter_filters`, `file:statistics`, and `file:preencode` for that folder.

A case fails when no checker knows it, when a checker raises, when a comparison fails, and when a recorded output that
states a tolerance was compared by nobody.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from stages.contract import Weights

T = TypeVar("T")

GROUP_MARK = "<"
"""An index entry such as `grad:<adapter tensor>` applies to every tensor whose name starts with `grad:`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The distance of one output from its recording."""

    tensor: str
    """Name in the index; a remark may follow after a space and a bracket: `latents (masked)`."""
    worst_error: float
    tolerance: float
    level: str
    """`strict`, `loose` (strict failed, the index allows this), `exact`, or `info` (never fails)."""
    passed: bool
    note: str = ""

    @property
    def ratio(self) -> float:
        """Worst error in units of the tolerance; above 1 is a failure."""
        if self.passed and self.worst_error <= 0:
            return 0.0
        return self.worst_error / self.tolerance if self.tolerance > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded case: its params and its tensors, inputs and outputs together."""

    name: str
    params: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    entry: Mapping[str, Any]
    """Its entry in index.json: `inputs` and `outputs` with shapes and tolerances."""

    def has(self, tensor: str) -> bool:
        """Whether this output is recorded here; a compact selection leaves some out."""
        return tensor in self.tensors

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors named `<prefix><rest>`, by rest; such as `group("init:")`."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def rules(self, tensor: str) -> Mapping[str, Any]:
        """The index entry of an output: its own, or that of its group."""
        outputs = self.entry.get("outputs", {})
        if tensor in outputs:
            return outputs[tensor]  # type: ignore[no-any-return]
        for name, rules in outputs.items():
            if GROUP_MARK in name and tensor.startswith(name.split(GROUP_MARK)[0]):
                return rules  # type: ignore[no-any-return]
        raise KeyError(f"the index of {self.name} lists no output {tensor}")


class Family:
    """A family folder. Networks are built once and shared by its cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Any] = json.loads((folder / "index.json").read_text("utf-8"))
        self.name = folder.name
        self._made: dict[str, Any] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed model_config.json."""
        return json.loads((self.folder / "model_config.json").read_text("utf-8"))  # type: ignore[no-any-return]

    @property
    def weights(self) -> Weights:
        """The checkpoint folder, as stages receive it."""
        return Weights(model=self.name, folder=self.folder, config=self.config, digests={})

    @cached_property
    def _entries(self) -> dict[str, dict[str, Any]]:
        recorded = {entry["case"]: entry for entry in self.index["cases"]}
        files = [
            path for path in sorted(self.folder.glob("*.json")) if path.name not in {"index.json", "model_config.json"}
        ]
        folders = [path for path in (self.folder / "preencode",) if path.is_dir()]
        return recorded | {f"file:{path.stem}": {"path": path} for path in (*files, *folders)}

    @property
    def case_names(self) -> list[str]:
        """Every case, in the order of the index, then the files."""
        return list(self._entries)

    def case(self, name: str) -> Case:
        """Read one case."""
        entry = self._entries[name]
        if "path" not in entry:
            tensors = read_tensors(self.folder / entry["file"])
            return Case(name=name, params=entry["params"], tensors=tensors, entry=entry)
        path: Path = entry["path"]
        params = json.loads(path.read_text("utf-8")) if path.is_file() else {"folder": str(path)}
        return Case(name=name, params=params, tensors={}, entry={})

    def once(self, key: str, make: Callable[[], T]) -> T:
        """`make()` the first time, the same object afterwards. Whoever changes it must change it back."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU, as stored."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def families(root: Path) -> list[Family]:
    """The family folders in `root`, or `root` itself if it is one."""
    if (root / "index.json").is_file():
        return [Family(root)]
    return [Family(folder) for folder in sorted(root.iterdir()) if (folder / "index.json").is_file()]


# Checkers ------------------------------------------------------------------------------------------------------------

Checker = Callable[[Family, Case], Iterator[Comparison]]
_CHECKERS: list[tuple[re.Pattern[str], Checker]] = []


def checks(pattern: str) -> Callable[[Checker], Checker]:
    """Register a checker for every case whose whole name matches `pattern`."""

    def register(checker: Checker) -> Checker:
        _CHECKERS.append((re.compile(pattern), checker))
        return checker

    return register


def load_checkers() -> dict[str, str]:
    """Import every module of this folder; the traceback of each that cannot be imported, by module."""
    broken = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in {"frame", "__main__"}:
            continue
        try:
            import_module(f"tests.parity.{path.stem}")
        except Exception:
            broken[path.stem] = traceback.format_exc()
    return broken


@dataclass(kw_only=True)
class Verdict:
    """The result of one case."""

    family: str
    case: str
    comparisons: list[Comparison] = field(default_factory=list)
    trouble: str = ""
    """Why the case could not be judged: unknown, or a traceback."""

    @property
    def passed(self) -> bool:
        return not self.trouble and all(comparison.passed for comparison in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The comparison nearest to, or furthest beyond, its tolerance."""
        judged = [one for one in self.comparisons if one.level != "info"]
        return max(judged, key=lambda one: (not one.passed, one.ratio), default=None)

    def failures(self) -> str:
        """For people: everything that failed."""
        lines = [
            f"{one.tensor}: worst {one.worst_error:.3g}, tolerance {one.tolerance:.3g} ({one.level}) {one.note}"
            for one in self.comparisons
            if not one.passed
        ]
        return "\n".join([*([self.trouble] if self.trouble else []), *lines])


def judge(family: Family, name: str) -> Verdict:
    """Run every checker that knows the case."""
    verdict = Verdict(family=family.name, case=name)
    known = [checker for pattern, checker in _CHECKERS if pattern.fullmatch(name)]
    if not known:
        verdict.trouble = "no checker knows this case"
        return verdict
    try:
        case = family.case(name)
        for checker in known:
            verdict.comparisons.extend(checker(family, case))
        verdict.comparisons.extend(_forgotten(case, verdict.comparisons))
    except Exception:
        verdict.trouble = traceback.format_exc()
    return verdict


def _forgotten(case: Case, made: list[Comparison]) -> Iterator[Comparison]:
    """A failure for each recorded output with a stated rule that no checker compared."""
    compared = {comparison.tensor.split(" (")[0] for comparison in made}
    for output, rules in case.entry.get("outputs", {}).items():
        stated = any(key == "compare" or "_strict" in key for key in rules)
        prefix = output.split(GROUP_MARK)[0]
        met = any(name.startswith(prefix) for name in compared) if GROUP_MARK in output else output in compared
        if stated and not met:
            yield failure(output, "recorded, but no checker compared it")
    if not made:
        yield failure("(nothing)", "the checker compared nothing")


# Comparing -----------------------------------------------------------------------------------------------------------


def failure(tensor: str, note: str) -> Comparison:
    """A comparison that could not even be made."""
    return Comparison(tensor=tensor, worst_error=float("inf"), tolerance=0.0, level="strict", passed=False, note=note)


def information(tensor: str, actual: Tensor, expected: Tensor) -> Comparison:
    """A difference shown for information; it never fails."""
    worst = worst_error(actual, expected)
    return Comparison(tensor=tensor, worst_error=worst, tolerance=0.0, level="info", passed=True)


def worst_error(actual: Tensor, expected: Tensor, where: Tensor | None = None) -> float:
    """Largest absolute difference, in float64; NaN stays NaN."""
    difference = (actual.detach().to("cpu", torch.float64) - expected.to(torch.float64)).abs()
    if where is not None:
        difference = difference[where.expand(difference.shape)]
    return difference.max().item() if difference.numel() else 0.0


def compare(case: Case, tensor: str, actual: Tensor, *, where: Tensor | None = None, remark: str = "") -> Comparison:
    """One output against its recording, by the tolerance in the index.

    Args:
        where: bool, broadcastable: compare only here (positions outside a padding mask carry no meaning).
        remark: shown in brackets behind the name, where one output is compared twice.
    """
    name = f"{tensor} ({remark})" if remark else tensor
    expected, rules = case.tensors[tensor], case.rules(tensor)
    if actual.shape != expected.shape:
        return failure(name, f"shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}")
    if rules.get("compare") == "exact" or not expected.is_floating_point():
        return exact(name, actual, expected)
    if "atol_strict" not in rules:
        return information(name, actual, expected)
    return graded(name, worst_error(actual, expected, where), rules["atol_strict"], rules.get("atol_loose"))


def exact(name: str, actual: Tensor, expected: Tensor) -> Comparison:
    """Every entry the same; the worst error is the number of entries that differ."""
    if actual.shape != expected.shape:
        return failure(name, f"shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}")
    wrong = int((actual.detach().cpu() != expected).sum())
    return Comparison(tensor=name, worst_error=wrong, tolerance=0.0, level="exact", passed=wrong == 0)


def graded(name: str, worst: float, strict: float, loose: float | None = None, note: str = "") -> Comparison:
    """Strict first; loose only where the index gives one. NaN passes neither."""
    if not worst <= strict and loose is not None and worst <= loose:
        return Comparison(tensor=name, worst_error=worst, tolerance=loose, level="loose", passed=True, note=note)
    return Comparison(
        tensor=name, worst_error=worst, tolerance=strict, level="strict", passed=worst <= strict, note=note
    )


def compare_group(case: Case, prefix: str, actual: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """A family of outputs, `grad:` or `after_step5:`, by the rules of its group entry.

    Args:
        prefix: with its colon.
        actual: by the name behind the prefix; it must hold exactly the recorded names.
    """
    expected = case.group(prefix)
    if expected.keys() != actual.keys():
        odd = sorted(expected.keys() ^ actual.keys())
        yield failure(prefix + "<names>", f"recorded {len(expected)}, ours {len(actual)}; differing: {odd[:4]}")
        return
    rules = case.rules(prefix)
    if "relative_l2_strict" in rules:
        yield from _relative_group(prefix, actual, expected, rules)
    elif "atol_for_99.5_percent_strict" in rules:
        yield _quantile_group(prefix, actual, expected, rules)
    else:
        yield from (compare(case, prefix + name, tensor) for name, tensor in actual.items())


def _relative_group(
    prefix: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], rules: Mapping[str, Any]
) -> Iterator[Comparison]:
    """Relative L2 per tensor, for those above a thousandth of the largest norm; the absolute figure for the rest."""
    largest = max(tensor.norm().item() for tensor in expected.values())
    for name, wanted in expected.items():
        if actual[name].shape != wanted.shape:
            yield failure(prefix + name, f"shape {tuple(actual[name].shape)}, recorded {tuple(wanted.shape)}")
        elif wanted.norm().item() > 1e-3 * largest:
            difference = actual[name].detach().cpu().double() - wanted.double()
            relative = (difference.norm() / wanted.double().norm()).item()
            limits = rules["relative_l2_strict"], rules.get("relative_l2_loose")
            yield graded(prefix + name, relative, *limits, note="relative L2")
        else:
            limits = rules["atol_strict"], rules.get("atol_loose")
            yield graded(prefix + name, worst_error(actual[name], wanted), *limits, note="absolute, small norm")


def _quantile_group(
    prefix: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], rules: Mapping[str, Any]
) -> Comparison:
    """99.5% of all entries of the group within one figure, every entry within `atol_max`."""
    name = f"{prefix}{GROUP_MARK}all>"
    wrong = [key for key, tensor in expected.items() if actual[key].shape != tensor.shape]
    if wrong:
        return failure(name, f"misshapen: {wrong[:4]}")
    gaps = [(actual[key].detach().cpu().double() - tensor.double()).abs().flatten() for key, tensor in expected.items()]
    gap = torch.cat(gaps)
    most = gap.kthvalue(max(1, -(-995 * gap.numel() // 1000))).values.item()
    worst = gap.max().item()
    if not worst <= rules["atol_max"]:
        return failure(name, f"one entry is off by {worst:.3g}, at most {rules['atol_max']:.3g} is allowed")
    limits = rules["atol_for_99.5_percent_strict"], rules.get("atol_for_99.5_percent_loose")
    return graded(name, most, *limits, note=f"99.5% of the entries; the worst is {worst:.2g}")
