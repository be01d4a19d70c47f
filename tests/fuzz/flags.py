"""Odd values of every flag of every command."""

import shutil
from pathlib import Path
from random import Random
from typing import Any

import typer

from hf_zipit import cli
from tests.fuzz.law import OUT, Case
from tests.fuzz.world import World

SKIPPED = {"debug", "help", "help_all", "out", "schema"}  # --debug shows tracebacks; a place is a kind of its own
COMMANDS = sorted(cli.COMMANDS.keys() - {"diagnose", "app"})  # one takes more images than a world has, one never ends
VALUES = (
    *("", " ", "0", "1", "-1", "2", "3", "1.5", "0.5", "nan", "inf", "-inf", "1e30", "1e-30", "99999999999999999999"),
    *("abc", ",", "a,b", ",,", "1,1", "none", "all", "auto", "true", "ünï 猫", "a" * 300, "\n", "a\nb", "\t"),
    *("/", ".", "..", "~", "*", "[a]", "a/b", "a/b/c", "@", ":", "a@b:c", "http://x", "-", "--", "%s", "{}", "$(x)"),
    *("cpu", "cuda", "meta", "mps", "cpu:7", "zip", "zip,average", "average", "layer1", "batchnorm", "refit", "repair"),
    *("data:train", "user/x", "README.md", "u/x/y", "--out", "mit", "timm", "transformers", "zipit", "other"),
)


def _base(rng: Random, world: World, command: str, folder: Path) -> list[str | Path]:
    """A command that succeeds. It evaluates a copy of a merge, whose card it may change."""
    merge, parents = rng.choice(sorted(world.merges.values()))
    if command == "eval":
        merge = Path(shutil.copytree(merge, folder / "merge"))
    parents = world.families[rng.choice(sorted(world.families))] if command == "merge" else parents
    data = ["--data", world.data]
    return {
        "merge": ["merge", *parents, *data, "-o", OUT],
        "fold": ["fold", parents[0], "--width", "0.5", *data, "-o", OUT],
        "eval": ["eval", merge, *data],
        "compare": ["compare", *parents, *data, "-o", "report", "--methods", "average", "--calibrate", "none"],
        "inspect": ["inspect", rng.choice((merge, parents[0]))],
        "export": ["export", merge, "--format", rng.choice(("timm", "transformers")), "-o", OUT],
        "push": ["push", merge, "user/x"],
        "check-spec": ["check-spec", parents[0]],
        "trace": ["trace", parents[0]],
        "recipe": ["recipe", merge / "zipit_config.yml"],
        "cache": ["cache"],
    }[command]


def _flag(rng: Random, parameter: Any) -> list[str]:
    """A flag with an odd value; a switch has none."""
    name = rng.choice([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag or parameter.count:
        return [name]
    return [name, rng.choice(VALUES)]


def make(rng: Random, world: World, folder: Path) -> Case:
    """A command with one to three flags of odd values, or with odd arguments."""
    command = rng.choice(("merge", "merge", "merge", "eval", "eval", "export", "push", "inspect", *COMMANDS))
    arguments = _base(rng, world, command, folder)
    (folder / "README.md").write_text("a file\n")
    known = [p for p in typer.main.get_command(cli.app).commands[command].params if p.name not in SKIPPED]
    options = [p for p in known if p.param_type_name == "option"]
    added = [text for p in rng.sample(options, min(len(options), rng.choice((1, 1, 2, 3)))) for text in _flag(rng, p)]
    if rng.random() < 0.1 and len(arguments) > 1:
        place = rng.randrange(1, len(arguments))
        arguments[place] = rng.choice(VALUES)
    if rng.random() < 0.1 and OUT in arguments:
        place = rng.choice((".", "..", "/", "README.md", "README.md/x", "", " ", "a/b/c", "a" * 300, "~", "x/../y"))
        arguments[arguments.index(OUT)] = place
    told = f"{command} with {' '.join(map(repr, added))}"
    return Case(told, [*arguments, *added], changes="merge" if "--update-card" in added else None)
