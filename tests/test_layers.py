"""The shape of the package: imports go downwards, importing it is light, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_zipit"
LAYERS = [
    ["__main__"],
    ["cli"],
    ["commands.export"],
    ["commands.merge", "commands.evaluate", "commands.inspect", "commands.check_spec", "commands.trace"],
    ["commands.push"],
    ["commands.recipe", "commands.cache", "commands.compare"],
    ["commands.options", "commands.recipe_flags"],
    ["results", "planning", "inspection"],
    ["comparison"],
    ["report", "from_recipe", "compare"],
    ["commands.hub_flags"],
    ["hub.push", "commands.terminal"],
    ["merging", "trials"],
    ["balance"],
    ["evaluation", "task_evaluation", "merger", "saving"],
    ["companions", "mixed", "sizing"],
    ["backbones"],
    ["card", "plain"],
    ["targets"],
    ["calibrate", "cache", "protocols", "fidelity", "matching.matcher", "sources", "widths"],
    ["repair", "refit.sweep"],
    ["refit.tracks"],
    ["refit.replay", "refit.fold", "refit.targets"],
    ["remerge"],
    ["refit.observe", "refit.normal", "refit.samples", "assembly", "tracing.check", "batching", "alike"],
    ["tracing.taps"],
    ["tracing.cuts"],
    ["tracing.tracer"],
    ["tracing.rules", "tracing.writer", "checks"],
    ["tracing.moves", "tracing.fold", "tracing.lines"],
    ["tracing.entries"],
    ["tracing.solve"],
    ["tracing.groups"],
    ["tracing.facts"],
    ["statistics", "matching.fingerprint", "matching.weights", "matching.sweeps", "data"],
    ["rows"],
    ["whole_models", "modeling_zipit_model"],
    ["libraries", "chain", "matching.methods", "matching.similarity", "transform", "binding"],
    [
        "matching.groups",
        "matching.kmeans",
        "matching.optimal",
        "matching.widen",
        "matching.controls",
        "matching.select",
    ],
    ["matching.quality"],
    ["matching.match", "moments", "refit.layers", "wiring", "progress"],
    ["names", "spaces", "matching.greedy", "modeling_zipit"],
    ["hub.download", "source"],
    ["checkpoint", "hub.faults", "pretrained_zipit"],
    ["configuration_zipit_model"],
    ["atomic", "configuration_zipit"],
    ["access", "hub.__init__", "metrics"],
    ["spec", "resume", "cifar_resnet", "cifar_vgg", "steps"],
    ["grammar", "hashing", "recipe"],
    ["licence", "units"],
    ["errors", "_register", "__init__", "tracing.__init__", "matching.__init__", "commands.__init__", "refit.__init__"],
]
LEVEL = {name: -i for i, names in enumerate(LAYERS) for name in names}
LEAVES = {"modeling_zipit", "configuration_zipit", "pretrained_zipit", "modeling_zipit_model"}
ALLOWED = {
    "timm": {"libraries", "plain", "modeling_zipit", "cifar_resnet", "cifar_vgg"},
    "transformers": {
        "libraries",
        "modeling_zipit",
        "configuration_zipit",
        "pretrained_zipit",
        "modeling_zipit_model",
        "whole_models",
        "_register",
        "commands.terminal",
    },
    "segmentation_models_pytorch": {"modeling_zipit_model", "whole_models"},
    "datasets": {"data", "rows", "targets"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"hf_zipit.{node.module}")
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downwards(path):
    me = name_of(path)
    assert me in LEVEL, "give the new module a layer"
    for name in imported(path):
        library, _, inside = name.partition(".")
        if library == "hf_zipit" and inside in LEVEL and me not in ("_register", "__init__"):
            assert LEVEL[inside] < LEVEL[me], f"{me} imports {inside}"
        if library in ALLOWED:
            assert me in ALLOWED[library], f"{me} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 260
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno - body[0].lineno + 1) if body else 0
            assert length <= 45, f"{node.name} has {length} lines"


def test_no_family_is_named_outside_specs_and_sources():
    for path in FILES:
        if name_of(path) not in ("libraries", "cifar_resnet", "cifar_vgg", "modeling_zipit"):
            code = ast.parse(path.read_text())
            strings = [n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            assert not [s for s in strings if "timm.models" in s], path


def test_importing_the_package_and_the_command_line_loads_no_library():
    heavy = ("torch", "timm", "transformers", "datasets")
    code = f"import hf_zipit.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented():
    import hf_zipit

    for name in hf_zipit.__all__:
        if name != "__version__":
            assert getattr(hf_zipit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_zipit.nothing
