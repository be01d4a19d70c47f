"""Odd recipe files: YAML of any shape."""

from pathlib import Path
from random import Random
from typing import Any

import yaml

from hf_zipit.recipe import Recipe
from tests.fuzz import odd
from tests.fuzz.law import OUT, Case
from tests.fuzz.world import World

ALIASES = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]  # a few lines, a billion values
TEXTS = (
    *("", "---", "- a\n- b", "text", "a: b: c", "\ta: 1", "sources: [", "sources: &a [*a]", "? [1, 2]\n: 3", "1: 2"),
    *("sources: !!python/object/apply:os.system ['true']", "sources: *a", "!!set {a, b}", "cut: !!binary aGk="),
    *(
        "---\na: 1\n---\nb: 2",
        "sources: [a]\nsources: [b]",
        "date: 2020-01-01",
        "%YAML 9.9\n---\na: 1",
        "\0",
        "a" * 5000,
    ),
    *("null: 1", "cut: " + "[" * 3000, "\n".join(["a0: &a0 [x]", *ALIASES])),
)
KNOWN: dict[str, tuple[Any, ...]] = {
    "method": ("zip", "average", "permute", "ZIP", ["zip"]),
    "calibrate": ("none", "repair", "refit", "Repair"),
    "cut": ("layer1", "layer9", "none", "conv1", 1, True),
    "num_images": (3, [3], [3, 3], [3, 3, 3], 0, "all", 3.0),
    "width": (1, 1.5, 2, "2x", 3, 1e9),
    "flops_budget": (0.1, 1.2, 2, "1e9", 10**12),
    "alpha": (0, 1, 0.5, "0.5"),
    "beta": (0, 1, 0.5),
    "balance": ("auto", 0, 0.3, 1, [1, 2], "0.5"),
    "tasks": (["a", "b"], ["a", "a"], "ab", ["a"], {"a": 1}, ["", " "], ["a/b", "../c"], [1, 2], ["a.b", "c"]),
    "batch_size": (1, 2, 10**6, 1.0, True),
    "device": ("cpu", "cuda:99", "meta", "tpu", 0),
    "seed": (-1, 2**70, 0.5, "x"),
    "spec": ("gone.yaml", ".", "recipe.yml", ""),
    "backbone": ("", "layer1", "no.such", "..", 1),
    "cache": (False, "no", 2),
}


def make(rng: Random, world: World, folder: Path) -> Case:
    """A merge by an odd recipe, or the recipe alone."""
    file = folder / "recipe.yml"
    parents = [str(parent) for parent in world.families[rng.choice(("vit", "timm-resnet"))]]
    if rng.random() < 0.2:
        text = rng.choice(TEXTS)
        file.write_text(text, encoding="utf-8")
        told = f"recipe: {odd.shown(text)}"
    else:
        told = _write(rng, file, {"sources": parents, "data": [str(world.data)], "num_images": 4})
    if rng.random() < 0.3:
        return Case(told, ["recipe", file, *rng.choice(([], ["--json"]))])
    return Case(told, ["merge", file, "-o", OUT, *rng.choice(([], [], ["--dry-run"], parents))])


def _write(rng: Random, file: Path, recipe: dict[str, Any]) -> str:
    """Write a recipe with a few odd values, and say which."""
    told = []
    for name in rng.sample(sorted(set(Recipe.model_fields) - {"sources", "data"}), rng.choice((0, 1, 1, 2, 3))):
        value = odd.odd(rng) if name not in KNOWN or rng.random() < 0.4 else rng.choice(KNOWN[name])
        recipe[name] = value
        told.append(f"{name}: {odd.shown(value)}")
    if rng.random() < 0.4 or not told:
        recipe, more = odd.changed(rng, recipe)
        told.append(more)
    text = yaml.safe_dump(recipe, allow_unicode=True).encode()
    if rng.random() < 0.05:
        text, more = odd.broken(rng, text)
        told.append(more)
    file.write_bytes(text)
    return f"recipe: {'; '.join(told)}"
