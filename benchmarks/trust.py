"""Whether the verdict can be trusted: what it expects of merges, beside what they do on labelled test images.

    python benchmarks/trust.py TRAIN TEST OUT.jsonl --pair A B [--pair C D ...]

Every pair is merged in several ways: by `auto`, and by the settings below. A row holds what the verdict expects without
labels (the share of the parents' accuracy that is kept), what was measured, and what `auto` chose. Rows that are in the
file already are not made again. At the end come the rank correlation, and how far `auto` is from the best setting.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from hf_zipit import evaluate
from hf_zipit.errors import ZipItError
from hf_zipit.merging.balance import merge_settled
from hf_zipit.merging.judge import judge
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.load import load_source

SETTINGS: dict[str, dict[str, Any]] = {
    "auto": {},
    "select, refit": {"method": "select", "calibrate": "refit"},
    "select, paired heads, refit": {"method": "select", "calibrate": "refit", "heads": "pair"},
    "average, refit": {"method": "average", "calibrate": "refit"},
    "permute, refit": {"method": "permute", "calibrate": "refit"},
    "zip, batchnorm": {"method": "zip", "calibrate": "batchnorm"},
    "select, batchnorm": {"method": "select", "calibrate": "batchnorm"},
    "select, width 1.25, refit": {"method": "select", "calibrate": "refit", "width": 1.25},
    "select, cut, refit": {"method": "select", "calibrate": "refit"},
    "first-parent, refit": {"method": "first-parent", "calibrate": "refit-heads"},
}


def rows(pair: list[str], args: argparse.Namespace, known: set[tuple[str, str]]) -> Any:
    """The rows of one pair, one after the other."""
    name = " + ".join(Path(model).name for model in pair)
    missing = [setting for setting in SETTINGS if (name, setting) not in known]
    if not missing:
        return
    sources = [load_source(model) for model in pair]
    merger = Merger(sources, args.train, num_images=args.num_images, cache=False)
    parents = None
    for setting in missing:
        options = dict(SETTINGS[setting])
        if "cut" in setting:
            cuts = merger.parents.binding.cuts
            options["cut"] = cuts[len(cuts) // 2]
        begun = time.perf_counter()
        row = {"pair": name, "setting": setting, "relation": str(merger.relation)}
        try:
            merged, recipe = merge_settled(merger, merger.recipe.changed(**options))
            verdict = judge(merger, merged, recipe)
        except ZipItError as error:
            yield {**row, "error": str(error)}
            continue
        found, *others = evaluate(
            merged, args.test, parents=() if parents else sources, num_images=args.test_images, batch_size=250
        )
        parents = parents or {one.model: one for one in others}
        alone = [next(iter(one.tasks.values())) for key, one in parents.items() if key.startswith("parent:")]
        yield {
            **row,
            "chosen": recipe.decisions,
            "kept": verdict.kept,
            "control_kept": verdict.control_kept,
            "worth_it": verdict.worth_it,
            "images": [one.images for one in verdict.tasks.values()],
            "average": found.average,
            "joint": found.joint,
            "true_kept": statistics.mean(a / b for a, b in zip(found.tasks.values(), alone, strict=True)),
            "ensemble": [parents["ensemble"].average, parents["ensemble"].joint],
            "seconds": round(time.perf_counter() - begun),
        }


def summary(made: list[dict[str, Any]]) -> str:
    """Rank correlation of expected and true retention, and how far `auto` is from the best."""
    good = [row for row in made if "error" not in row]
    lines = [f"{len(good)} merges of {len({row['pair'] for row in good})} pairs"]
    rank = spearmanr([row["kept"] for row in good], [row["true_kept"] for row in good]).statistic
    lines.append(f"rank correlation of what is expected to be kept and what is: {rank:.3f}")
    for pair in dict.fromkeys(row["pair"] for row in good):
        mine = {row["setting"]: row for row in good if row["pair"] == pair}
        same = {name: row for name, row in mine.items() if "width" not in name and "cut" not in name}  # at 1x
        if "auto" not in mine:
            continue
        best = [max(row[key] for row in same.values()) for key in ("average", "joint")]
        auto = mine["auto"]
        lines.append(
            f"{pair}: auto ({auto['chosen']['method']}, {auto['chosen']['calibrate']}) "
            f"{100 * auto['average']:.1f} / {100 * auto['joint']:.1f}, best {100 * best[0]:.1f} / {100 * best[1]:.1f}, "
            f"expected {auto['kept']:.3f}, true {auto['true_kept']:.3f}, control {auto['control_kept']:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the missing rows, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pair", nargs=2, action="append", default=[])
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--test-images", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    for pair in args.pair:
        for row in rows(pair, args, {(row["pair"], row["setting"]) for row in made}):
            made.append(row)
            with args.out.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(row["pair"], row["setting"], row.get("kept"), row.get("true_kept"), row.get("error"), flush=True)
    print(summary(made))


if __name__ == "__main__":
    main()
