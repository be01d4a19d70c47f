"""Fine-tune a model on each of four fine-grained data sets, merge all pairs and all four, and evaluate the merges.

    python examples/four_datasets.py OUT dogs=DOGS pets=timm/oxford-iiit-pet cub=CUB nabirds=NABIRDS
    python examples/four_datasets.py OUT pets=PETS wild=WILD --base BASE --image-size 64 --cuts layer3 layer2

Each argument is a name with a folder or Hub id. `dogs`, `pets`, `cub` and `nabirds` may be folders with the original
files (see the script of each). Any other name is a data set with an image and a label column. Models and merges are
saved to OUT in Hub format, and existing models are not trained again. The tables include controls.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import cub200
import nabirds
import oxford_pets
import stanford_dogs
from fine_tuning import Task, fine_tune, from_library, push, training_arguments
from merge_table import compared, merging_arguments

from hf_zipit.comparison.report import comparison_table
from hf_zipit.evaluation.results import Result
from hf_zipit.merging.merger import Merger
from hf_zipit.saving import save as saving

TASKS = {module.TASK.name: module.TASK for module in (stanford_dogs, oxford_pets, cub200, nabirds)}


def task(name: str) -> Task:
    """A known data set, or any other that `datasets` can read."""
    return TASKS.get(name) or Task(name, lambda root, split: from_library(str(root), split), None, "resnet50.a1_in1k")


def merge_group(names: Sequence[str], args: argparse.Namespace) -> list[Result]:
    """Merge the models of some data sets by every method, save the merges to OUT, and evaluate them."""
    data = dict(args.data)
    train, test = ([task(name).split(data[name], split) for name in names] for split in ("train", "test"))
    merger = Merger([args.out / name for name in names], train, num_images=args.num_images, tasks=names)

    def save(slug: str, merged: Any) -> None:
        folder = args.out / "-".join([*names, slug])
        saving.save(merged, folder, overwrite=True)
        if args.push:
            push(folder, f"{args.push}/{folder.name}")

    return compared(merger, args, test, save)


def averaged(groups: Sequence[Sequence[Result]]) -> list[Result]:
    """Rows as in the papers: for each way to merge, the mean per data set over the groups that contain it."""
    found: dict[tuple[str, Any, Any], list[Result]] = {}
    for row in (row for group in groups for row in group):
        key = (row.model, row.settings.get("cut"), row.settings.get("calibrate"))
        found.setdefault(key, []).append(row)
    return [_mean_row(rows) for rows in sorted(found.values(), key=lambda rows: rows[0].model == "ensemble")]


def _mean_row(rows: Sequence[Result]) -> Result:
    """The mean of rows of several groups."""
    first = rows[0]
    names = dict.fromkeys(name for row in rows for name in row.tasks)
    tasks = {name: mean(row.tasks[name] for row in rows if name in row.tasks) for name in names}
    numbers = ("joint", "distance", "flops", "parameters", "seconds")
    means = {key: mean(getattr(row, key) for row in rows) for key in numbers if getattr(first, key) is not None}
    correlation = {name: mean(row.correlation[name] for row in rows) for name in first.correlation}
    return replace(first, tasks=tasks, average=mean(tasks.values()), correlation=correlation, **means)


def pair(text: str) -> tuple[str, str]:
    """Parse an argument of the form `name=data`."""
    name, equals, data = text.partition("=")
    if not (name and equals and data):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form name=data, such as pets=timm/oxford-iiit-pet")
    return name, data


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+", type=pair, metavar="NAME=DATA", help="two or more")
    training_arguments(parser)
    merging_arguments(parser, cuts=["layer3", "layer2"])
    parser.add_argument("--push", metavar="USER", help="upload all models and merges to this account")
    return parser.parse_args()


def main() -> None:
    """Fine-tune, merge, evaluate."""
    args = parse()
    names = [name for name, _ in args.data]
    for name, data in args.data:
        folder = fine_tune(task(name), data, args.out / name, args)
        if args.push:
            push(folder, f"{args.push}/{name}")
    pairs = [merge_group(two, args) for two in itertools.combinations(names, 2)]
    about = f"Pairs ({len(pairs)}), {args.num_images} unlabelled images of each data set"
    print(f"{about}:\n{comparison_table(averaged(pairs), names)}")
    if len(names) > 2:
        print(f"\nAll {len(names)} in one model:\n{comparison_table(merge_group(names, args), names)}")


if __name__ == "__main__":
    main()
