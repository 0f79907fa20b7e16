"""Rules of the house (ARCHITECTURE.md), read off the source: each test lists what breaks its rule."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "sa3_trainer": {"sa3_trainer", "pipeline", "stages", "cache"},
    "pipeline": {"pipeline", "stages", "cache"},
    "stages": {"stages", "cache"},
    "cache": {"cache"},
}
"""Each room and the rooms it may import."""
STAGES = ("ingest", "encode", "train")
LAYERS = {
    "cache": """
        errors location
        checked_record files fingerprint
        digest_cache manifest receipt registry shard_format shared_files
        shards store
        run_metadata shard_pool
        inventory shard_salvage
    """,
    "sa3_trainer": """
        installation results
        calls command
        __main__
    """,
    "pipeline": """
        early_stop store_option streams
        errors waited_lock
        path_errors
        settings
        example_style request terminal
        example_dataset
        bench_grid cli_errors plan
        execution report
        options
        generate maintenance
        serve
        cli
        __main__
    """,
    "stages": """
        field model_config plural precision processes records safetensors_header text versions
        catalogue contract errors references
        adapters disk_space judge models prepared_audio
        ingest
        encode generate train
        pretrain
        bench
    """,
    "pipeline.serve": """
        errors
        addresses settings
        jobs sources
        files submission
        http
        certificates
        server
        command
    """,
    "stages.adapters": """
        finite_values kind layer_filter ops singular_vectors torch_archive
        adapter_header
        adapter_file factored_weight kinds target_layers
        basis header_faults
        layer magnitude
        quantized_layer
        attach
        stacked
    """,
    "stages.models": """
        checkpoint_folder device library_logging
        bundled_weights nets
        load_weights quantized_linear
        families
    """,
    "stages.ingest": """
        faults
        caption_template file_types integrity
        audio_content
        source
        stage
        audio
        captions prepare_clip
        clip_warnings effective_limits window workers
        run
    """,
    "stages.encode": """
        batching device_batches partial_shards stage
        encode_ahead facts prompts
        encode_latents
        pre_encoded run
    """,
    "stages.generate": """
        audio_file settings
        adapted_model style_clips
        sampling
        run
    """,
    "stages.train": """
        determinism rng stage
        job optim
        dataset record
        model
        training
        cuda_graph setup
        forecast loop output
        run
    """,
    "stages.pretrain": """
        clocked_run rate_schedule synthesis
        autoencoder captions
        judge tempo
        transformer
        assemble
    """,
    "stages.pretrain.autoencoder": """
        architecture discriminator optimizer
        initialisation recipe spectra variety
        figures losses sounds trainee
        step
        carried checkpoint
        run
    """,
    "stages.pretrain.transformer": """
        architecture initialisation prompts
        recipe text_encoder
        generator latents
        pool
        batch
        held_out step
        checkpoint figures
        listening
        run
    """,
    "stages.pretrain.captions": """
        nouns phrases tokenizer
        caption
    """,
    "stages.pretrain.synthesis": """
        facts signal
        families
        synthesiser
    """,
}
"""Inside a room, from the bottom up: a part (file or folder) imports those of lines above its own, and no others."""
HEAVY = {
    "torch", "numpy", "pyarrow", "h5py", "resampy", "soundfile", "transformers", "huggingface_hub", "safetensors",
    "scipy", "joblib", "pydantic", "filelock", "tokenizers",
}  # fmt: skip
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "process", "data", "info"}
MOST_MODULES, MOST_LINES = 15, 400

FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


@cache
def imported(path: Path, *, top_only: bool = False) -> set[str]:
    """Full names of the modules a file imports: ours down to the file, of others as they are written."""
    found: set[str] = set()
    for node in tree(path).body if top_only else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            named = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= named if len(named) == len(node.names) else {node.module, *named}
    return found


@cache
def ours(path: Path, *, top_only: bool = False) -> set[str]:
    return imported(path, top_only=top_only) & MODULES.keys()


def is_within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def offending(room: str, *forbidden: str) -> list[str]:
    """Imports from a room into those it must not know."""
    return [
        f"{name} -> {other}"
        for name, path in MODULES.items()
        if is_within(name, room)
        for other in ours(path)
        if any(is_within(other, place) for place in forbidden)
    ]


def test_a_room_imports_only_itself_and_the_rooms_below_it():
    assert [found for room, known in ROOMS.items() for found in offending(room, *(ROOMS.keys() - known))] == []


def test_no_stage_imports_another():
    others = {name: [f"stages.{other}" for other in STAGES if other != name] for name in STAGES}
    assert [found for name, rest in others.items() for found in offending(f"stages.{name}", *rest)] == []


def test_adapters_do_not_import_models():
    assert offending("stages.adapters", "stages.models") == []


def test_models_do_not_import_the_code_of_stages():
    assert offending("stages.models", *(f"stages.{name}" for name in STAGES)) == []


def test_only_the_command_line_knows_how_the_shipped_model_is_made():
    wrong = [
        f"{name} -> {other}"
        for name, path in MODULES.items()
        if name != "pipeline.cli" and not is_within(name, "stages.pretrain")
        for other in ours(path)
        if is_within(other, "stages.pretrain")
    ]
    assert wrong == []


def layers(room: str) -> list[list[str]]:
    return [line.split() for line in LAYERS[room].strip().splitlines()]


def parts(room: str) -> dict[str, set[str]]:
    """Files and folders of a room, and the other parts of it that each imports."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name.startswith(f"{room}."):
            part = name.removeprefix(f"{room}.").split(".")[0]
            inside = {other.removeprefix(f"{room}.") for other in ours(path) if other.startswith(f"{room}.")}
            found.setdefault(part, set()).update({other.split(".")[0] for other in inside} - {part})
    return found


@pytest.mark.parametrize("room", LAYERS)
def test_a_part_of_a_room_imports_only_parts_below_it(room):
    height = {part: number for number, names in enumerate(layers(room)) for part in names}
    wrong = [
        f"{part} -> {other}"
        for part, others in parts(room).items()
        for other in others
        if height[other] >= height[part]
    ]
    assert wrong == []


@pytest.mark.parametrize("room", LAYERS)
def test_every_part_of_a_room_has_its_layer(room):
    assert sorted(part for names in layers(room) for part in names) == sorted(parts(room))


def test_parts_of_one_folder_do_not_import_each_other_in_a_circle():
    folders = {module_name(path.parent / "__init__.py") for path in FILES}
    assert {room: found for room in folders if (found := circles(parts(room)))} == {}


def test_no_module_imports_itself_by_way_of_others_not_even_late():
    assert [" -> ".join(circle) for circle in circles({name: ours(path) for name, path in MODULES.items()})] == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules left when those that import nothing that is left are taken away again and again."""
    left = {name: others - {name} for name, others in graph.items()}
    while done := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in done}
    wanted = Counter(other for others in left.values() for other in others)
    return [sorted(name for name in left if wanted[name])] if left else []


def test_a_circle_of_imports_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


def test_a_folder_holds_few_modules():
    counts = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {str(place.relative_to(ROOT)): n for place, n in counts.items() if n > MOST_MODULES} == {}


def test_a_module_is_short():
    lengths = {module_name(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_a_module_is_named_for_what_it_holds():
    assert [name for name in MODULES if name.split(".")[-1] in VAGUE] == []


def test_a_module_says_in_its_first_line_what_is_in_it():
    silent = [module_name(path) for path in FILES if tree(path).body and not ast.get_docstring(tree(path))]
    assert silent == []


def test_functions_are_short():
    functions = [node for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]
    lengths = sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)
    assert statistics.median(lengths) < 12
    assert lengths[int(len(lengths) * 0.9)] < 35


@cache
def is_light(name: str) -> bool:
    """A module is light when its docstring says so; one without any code is."""
    return not tree(MODULES[name]).body or "Light:" in (ast.get_docstring(tree(MODULES[name])) or "")


def test_a_light_module_imports_nothing_heavy_and_of_ours_only_light_ones():
    wrong = [
        f"{name} -> {other}"
        for name, path in MODULES.items()
        if is_light(name)
        for other in imported(path, top_only=True)
        if other.split(".")[0] in HEAVY or (other in MODULES and not is_light(other))
    ]
    assert wrong == []


def test_the_front_desk_and_what_stages_declare_are_light():
    declared = {name for name in MODULES if name.endswith(".stage")} | {"stages.catalogue", "stages.contract"}
    desk = {name for name in MODULES if is_within(name, "pipeline") or is_within(name, "sa3_trainer")}
    assert sorted(name for name in declared | desk if not is_light(name)) == []


@pytest.mark.parametrize(
    "command", [["--help"], ["run", "--help"], ["status", "--store", "no-such-store"]], ids=" ".join
)
def test_help_and_status_load_neither_torch_nor_numpy_nor_pyarrow(command, tmp_path):
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'h5py', 'numba', 'transformers', 'joblib'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules)), flush=True))\n"
        f"sys.argv = ['sa3-trainer', *{command!r}]\n"
        "from pipeline.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
