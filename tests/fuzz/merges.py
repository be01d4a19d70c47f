"""Odd saved merges, given to the commands that read them."""

import json
import shutil
from pathlib import Path
from random import Random

import yaml

from tests.fuzz import odd, weights
from tests.fuzz.law import OUT, Case
from tests.fuzz.world import World, read

CODE = ("modeling_zipit.py", "configuration_zipit.py", "steps.py")


def make(rng: Random, world: World, folder: Path) -> Case:
    """A command that reads a merge with an odd file."""
    name = rng.choice(sorted(world.merges))
    saved, parents = world.merges[name]
    merge = Path(shutil.copytree(saved, folder / "merge"))
    told, succeeds = _spoil(rng, merge)
    given = [text for parent in parents for text in ("--parent", parent)]
    data = ["--data", world.data]
    cut = ["--cut", read(saved / "config.json").get("cut")] if name.startswith("partial") else []
    command: list[str | Path] = rng.choice(
        [
            ["eval", merge, *data, "--json", *given],
            ["eval", merge, *data, "--json"],
            ["eval", merge, *data, "--json", "--update-card"],
            ["inspect", merge, "--json"],
            ["push", merge, "user/x"],
            ["export", merge, "--format", "timm" if "vit" not in name else "transformers", "-o", OUT],
            ["merge", merge, parents[0], *data, *cut, "-o", OUT],
            ["merge", merge / "zipit_config.yml", *parents, *data, "-o", OUT],
        ]
    )
    reads_weights = command[0] in ("eval", "inspect", "export") or command[:2] == ["merge", merge]
    fails = succeeds is False and reads_weights
    changes = merge.name if "--update-card" in command else None
    return Case(f"{name}: {told}", command, succeeds=False if fails else None, changes=changes)


def _spoil(rng: Random, merge: Path) -> tuple[str, bool | None]:
    """Change one file of a merge, and say how."""
    how = rng.random()
    if how < 0.4:
        return _config(rng, merge / "config.json"), None
    if how < 0.6:
        return weights.spoil(rng, merge)
    file = merge / rng.choice(("zipit_config.yml", "zipit_spec.yaml", "README.md", *CODE, "preprocessor_config.json"))
    if not file.is_file():
        return "nothing", None
    if rng.random() < 0.2:
        file.unlink()
        return f"{file.name} missing", None
    if file.suffix in (".yml", ".yaml") and rng.random() < 0.7:
        values, told = odd.changed(rng, yaml.safe_load(file.read_text()))
        file.write_text(yaml.safe_dump(values))
        return f"{file.name}: {told}", None
    if file.suffix == ".json" and rng.random() < 0.7:
        return _config(rng, file), None
    data, told = odd.broken(rng, file.read_bytes())
    file.write_bytes(data)
    return f"{file.name}: {told}", None


def _config(rng: Random, file: Path) -> str:
    config, told = odd.changed(rng, read(file))
    file.write_text(json.dumps(config), encoding="utf-8")
    return f"{file.name}: {told}"
