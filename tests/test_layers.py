"""The shape of the package: rooms stand on floors, imports lead down, importing it is light, files stay small."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_zipit"
ROOMS = [  # from the top down; a room is a folder, or a module beside the folders, and imports only what stands below
    *(
        "__main__",
        "cli",
        "app",
        "commands",
        "comparison",
        "diagnosis",
        "merging",
        "evaluation",
        "assembly",
        "backbones",
        "find_spec",
    ),
    *("find_spec", "saving", "recipe", "heads", "calibration", "checks", "tracing", "matching", "settings"),
    "deltas",
    *("statistics", "data", "sources"),
    *("costs", "running", "transform", "specs", "text", "progress", "models", "files", "errors"),
]
LIBRARIES = {
    "timm": {"sources", "models"},
    "transformers": {"sources", "models"},
    "peft": {"sources"},
    "segmentation_models_pytorch": {"sources", "models"},
    "datasets": {"data"},
    "gradio": {"app.page", "app.panels", "app.space"},
    **{name: {"saving.onnx_file"} for name in ("onnx", "onnxscript", "onnxruntime")},  # one file alone
}
NO_LEAVES = {"models.__init__", "models.auto"}
FLAT = 12  # modules beside the folders, at most


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str) -> list[str]:
    """What a file imports anywhere in it: libraries, and modules of the package by their full names."""
    found: list[str] = []
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(".".join(["hf_zipit", *name.split(".")[: -node.level], node.module or ""]).strip("."))
        elif isinstance(node, ast.ImportFrom):
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            modules = [full for full in inner if full.removeprefix("hf_zipit.") in FILES]
            found += modules or [str(node.module)]
    return found


def inside(name: str) -> list[str]:
    """Those of the imports that are modules of the package, relative to it."""
    found = (full.removeprefix("hf_zipit.") for full in imported(name) if full.startswith("hf_zipit."))
    return [module if module in FILES else f"{module}.__init__" for module in found]


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_has_its_place():
    assert {room_of(name) for name in FILES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("name", FILES)
def test_imports_lead_down(name):
    if name == "__init__":
        return
    mine = ROOMS.index(room_of(name))
    for other in inside(name):
        there = ROOMS.index(room_of(other))
        assert there >= mine, f"{name} imports {other}, which stands above it"


@pytest.mark.parametrize("room", sorted({room_of(name) for name in FILES if "." in name}))
def test_no_circles_inside_a_room(room):
    mine = [name for name in FILES if room_of(name) == room]
    graph = {
        name: {other for other in inside(name) if other in mine and not other.endswith("__init__")} for name in mine
    }
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) == "models" and name not in NO_LEAVES])
def test_what_travels_into_merged_repositories_imports_nothing_but_its_like(name):
    beside = [other for other in inside(name) if not other.endswith("__init__")]
    assert all(room_of(other) == "models" and other not in NO_LEAVES for other in beside)
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        assert not (isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("hf_zipit"))
        assert not (isinstance(node, ast.Import) and any(alias.name.startswith("hf_zipit") for alias in node.names))


@pytest.mark.parametrize("name", FILES)
def test_each_library_is_known_in_its_rooms_alone(name):
    for full in imported(name):
        allowed = LIBRARIES.get(full.partition(".")[0])
        assert allowed is None or {room_of(name), name} & allowed, f"{name} imports {full}"


def test_few_modules_stand_beside_the_folders():
    assert len([name for name in FILES if "." not in name]) <= FLAT


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".__init__")])
def test_every_folder_says_what_comes_in_what_goes_out_and_what_is_not_done_there(name):
    text = ast.get_docstring(ast.parse(FILES[name].read_text())) or ""
    for said in ("In:", "Out:", "Not here:"):
        assert said in text, f"{name} does not say {said}"


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_stay_small(name):
    text = FILES[name].read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno - body[0].lineno + 1) if body else 0
            assert length <= 50, f"{node.name} has {length} lines"


def test_no_family_is_named_outside_specs_and_sources():
    for name, path in FILES.items():
        if room_of(name) not in ("sources", "models"):
            code = ast.parse(path.read_text())
            strings = [n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            assert not [s for s in strings if "timm.models" in s], path


def test_importing_the_package_and_the_command_line_loads_no_library():
    heavy = ("torch", "timm", "transformers", "datasets", "gradio")
    code = f"import hf_zipit.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented():
    import hf_zipit

    for name in hf_zipit.__all__:
        if name != "__version__":
            assert getattr(hf_zipit, name).__doc__, name
    with pytest.raises(AttributeError, match="No hf_zipit attribute nothing"):
        _ = hf_zipit.nothing
