"""Generate what the documentation says about options, methods, commands, recipes, JSON and families; and pictures.

python docs/make.py            # writes pages on options, commands, recipes and JSON, pictures, and tables of families
python docs/make.py --check    # exit with 1 if one of these files is out of date
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pictures import PICTURES
from reference_pages import commands, recipes
from tables import summary, table

from hf_zipit.calibration.methods import CALIBRATIONS
from hf_zipit.calibration.presets import PAPERS, PRESETS
from hf_zipit.commands.json_output import OUTPUTS, VERSION
from hf_zipit.comparison.papers import CONTROLS, PREFIX, rows_of
from hf_zipit.comparison.papers import PAPERS as TABLES
from hf_zipit.matching.method import Method
from hf_zipit.matching.methods import METHODS
from hf_zipit.recipe import Recipe
from hf_zipit.specs.parser import read

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NO_OPTION = ("sources", "generator")
PAGE = """# Options

Every option of a merge: a flag of `hf-zipit merge` and `hf-zipit compare`, a keyword of `hf_zipit.merge`, and a key of
a recipe file. `hf-zipit recipe --schema` prints the JSON schema. This page is written by `make docs`.

{options}

## Methods

{methods}

`auto` takes `select` with a refit. For models of one base it makes `average` too (with `--base`, `tsv`), and keeps the
merge that is nearer to them: [what is chosen](automatic.md). `select` is meant for `--calibrate refit`. `optimal` takes
up to 512 units per model and needs `pip install 'hf-zipit[optimal]'`. Controls are not methods: with a refit they show
what the trunk of one parent, or a random match, already gives.

Weights are compared in terms of the merged units of neighbouring layers, so spaces are matched in turn until no match
changes, at most `--sweeps` times. `--balance auto` tries 0.1 to 0.9 and takes the merge whose outputs are closest to
its parents' on the images, without labels; with `--balance-data`, the most accurate on labelled images. With `-v`,
`zip` prints an upper bound on how far the matching of each space is from the optimum.

`c2m3` seeks the permutations of all models and all spaces together, so that maps between models agree around any cycle
of them, and the merge is the same in any order of the models. It takes at most `--sweeps` steps, and width 1 only.
`partial-ot` chooses the pairs of a wider merge together, where `permute` pairs all units and then splits the worst
pairs; it makes such merges of two models only, and is `permute` at width 1. What both give:
[benchmarks](../benchmarks/README.md#c2m3-and-partial-ot).

## Calibrations

{calibrations}

`repair-weights` is the repair Fold-AR of model folding: [how it scales](fold.md#what-is-chosen).

## Presets

{presets}

`pleas` with `--flops-budget` is PLeaS with a layer budget:
[how a budget is spent](guides/cut_or_budget.md#how-a-budget-is-spent).

## Tables of papers

`hf-zipit compare --methods paper:NAME` makes these rows, and the controls `random`, `first-parent` and `last-parent` in
the same calibrations.

{papers}
"""

JSON = """# JSON output

With `--json`, every command prints one JSON object. Its first key, `schema`, is `hf-zipit/KIND/VERSION`. The version is
now {version}: until it changes, keys are only added. A key that has no value for a model or merge is `null` or missing.
`rows[].model` stands for the key `model` of every entry of the list `rows`. Shares and accuracies are fractions, not
percent. `hf-zipit merge --dry-run` prints a `plan`, `hf-zipit fold` a `merge`, and `hf-zipit inspect` of a merge an
`inspect-merge`. This page is written by `make docs`.
{kinds}
"""


def options(names: Iterable[str]) -> str:
    """A table of the named options."""
    fields = {name: Recipe.model_fields[name] for name in names}
    rows = [
        [f"`{name}`", "" if field.default is None else f"`{field.default}`", summary(field.description or "")]
        for name, field in fields.items()
    ]
    return table(["option", "default", "meaning"], rows)


def compared(method: Method) -> str:
    """What a method compares: activations, weights, both or nothing; or differences to a base, or inputs of layers."""
    if method.rule is not None:
        return "differences to a base" if method.based else "inputs of layers"
    kinds = [name for name, read in (("activations", method.activations), ("weights", method.weights)) if read]
    return " and ".join(kinds) or "nothing"


def methods() -> str:
    """A table of all methods and controls."""
    rows = [
        [f"`{name}`" + (" (control)" if method.control else ""), compared(method), method.summary]
        for name, method in METHODS.items()
    ]
    return table(["method", "compares", "what it does"], rows)


def calibrations() -> str:
    """A table of all calibrations."""
    rows = [[f"`{name}`", calibration.summary] for name, calibration in CALIBRATIONS.items()]
    return table(["calibration", "what it does"], rows)


def presets() -> str:
    """A table of all presets."""
    rows = [
        [f"`{name}`", ", ".join(f"`{key}: {value}`" for key, value in values.items()), PAPERS[name]]
        for name, values in PRESETS.items()
    ]
    return table(["preset", "options", "source"], rows)


def papers() -> str:
    """A table of all papers whose rows can be compared."""
    lines = [[f"`{PREFIX}{name}`", "; ".join(map(row, own_rows(name))), paper.source] for name, paper in TABLES.items()]
    return table(["paper", "rows", "source"], lines)


def own_rows(paper: str) -> list[dict[str, Any]]:
    """The rows of a paper without the controls."""
    return [row for row in rows_of(paper) if row["method"] not in CONTROLS]


def row(options: dict[str, Any]) -> str:
    """A row of a paper: its method, calibration and further options."""
    method, calibrate, *rest = options.items()
    return " ".join(
        [f"{method[1]} {calibrate[1]}", *(name if value is True else f"{name}={value}" for name, value in rest)]
    )


def outputs() -> str:
    """A table of keys for every kind of JSON output."""
    tables = [f"\n## {kind}\n\n{table(['key', 'meaning'], named(keys))}" for kind, keys in OUTPUTS.items()]
    return "\n".join(tables)


def named(keys: dict[str, str]) -> list[list[str]]:
    """Rows of a table with the names as code."""
    return [[f"`{key}`", text] for key, text in keys.items()]


def families(library: str) -> str:
    """A table of the families of a library: what a spec file says of itself, its checks, and its blocks."""
    rows = []
    for path in sorted((ROOT / "model_specs").glob(f"{library}_*.yaml")):
        spec = read(path)
        about = re.match(r"family: \S+\s+# (.*)", spec.text)
        link = f"[`{path.stem}`](../../model_specs/{path.name})"
        checked = ", ".join(f"{name.removeprefix('transformers.')} ({spaces})" for name, spaces in spec.check.items())
        blocks = [step.name for either in spec.chain for step in either if "{" in step.name]
        rows.append([link, about[1] if about else "", checked, ", ".join(f"`{name}`" for name in blocks)])
    return table(["file", "models", "checked with (feature spaces)", "blocks"], rows)


def filled(path: Path, parts: dict[str, str]) -> str:
    """The text of a file with each section between `<!-- NAME -->` and `<!-- end of NAME -->` replaced.

    Raises:
        ValueError: a section is missing, or occurs more than once.
    """
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
        text, count = marked.subn(lambda found, part=part: f"{found[1]}\n{part}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"{path.name} has {count} sections marked '{name}'; exactly one is needed")
    return text


def pages() -> dict[Path, str]:
    """The generated files and their contents."""
    every = [name for name in Recipe.model_fields if name not in NO_OPTION]
    known = {"options": options(every), "methods": methods(), "calibrations": calibrations(), "presets": presets()}
    known["papers"] = papers()
    models = DOCS / "models" / "families.md"
    return {
        DOCS / "json.md": JSON.format(version=VERSION, kinds=outputs()),
        DOCS / "options.md": PAGE.format(**known),
        DOCS / "reference" / "commands.md": commands(),
        DOCS / "reference" / "recipes.md": recipes(),
        models: filled(models, {"timm": families("timm"), "transformers": families("hf")}),
        **{DOCS / "pictures" / f"{name}.svg": draw().svg() for name, draw in PICTURES.items()},
    }


def main(check: bool) -> int:
    """Write the files; or, with `check`, return 1 if any of them is out of date."""
    stale = 0
    for file, text in pages().items():
        current = file.is_file() and file.read_text(encoding="utf-8") == text
        stale += not current
        if not check:
            file.write_text(text, encoding="utf-8")
        elif not current:
            print(f"{file.relative_to(ROOT)} is out of date: run `make docs`")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
