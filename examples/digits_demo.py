"""Demo: merge two independently trained digit classifiers with the command-line interface, without a network.

    python examples/digits_demo.py [OUT]

The two models are in `examples/digits`, written by `examples/train_digits.py`. They are merged by what hf-zipit chooses
for them, and by average, permute, zip, partial zip and zip with a refit, along with controls. All merges are evaluated
on held-out digits and plotted. OUT is `demo_output` by default.
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when datasets is imported

from digits_data import write_parquet

from hf_zipit.cli import app
from hf_zipit.evaluation.report import plot
from hf_zipit.evaluation.results import Result
from hf_zipit.text import table

MODELS = [Path(__file__).parent / "digits" / name for name in ("digits-0-4", "digits-5-9")]
AUTO = "auto"  # the plain command
MERGES = {
    AUTO: [],
    "average": ["--method", "average", "--calibrate", "batchnorm"],
    "permute": ["--method", "permute", "--calibrate", "batchnorm"],
    "zip": ["--preset", "zipit"],
    "zip, cut after layer2": ["--preset", "zipit", "--cut", "layer2"],
    "zip, cut after layer1": ["--preset", "zipit", "--cut", "layer1"],
    "zip, refit": ["--method", "zip", "--calibrate", "refit"],
    "control: random, refit": ["--method", "random", "--calibrate", "refit"],
    "control: first-parent, refit": ["--method", "first-parent", "--calibrate", "refit"],
}


def hf_zipit(*arguments: object) -> str:
    """Run the command line and return what it prints."""
    command = [str(a) for a in arguments]
    shown = [os.path.relpath(a) if Path(a).is_absolute() else a for a in command]
    print(f"$ hf-zipit {shlex.join(shown)}", file=sys.stderr)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # in one process, as importing torch is slow
        app(command, standalone_mode=False)
    return printed.getvalue()


def main(out: Path) -> None:
    """Merge, evaluate, print one table and write one plot."""
    started = time.perf_counter()
    data = write_parquet(out / "digits")
    results, spaces = {}, {}
    for name, options in MERGES.items():
        folder = out / re.sub(r"(, cut after |, |: )", "-", name)
        judged = [] if name == AUTO else ["--no-verdict"]  # the others are measured with labels only
        hf_zipit("merge", *MODELS, "--data", data, *options, *judged, "-o", folder, "--overwrite")
        rows = json.loads(hf_zipit("eval", folder, "--data", data, "--json"))["rows"]
        results[name] = [Result(**row) for row in rows]
        spaces[name] = json.loads((folder / "config.json").read_text())["zipit"]["spaces"]
    picture = plot(results, spaces["zip"], out / "digits.png")
    print(summary(results))
    print(f"\n{picture}: accuracy against cost, and the composition of the merged units")
    seconds = time.perf_counter() - started
    print(f"{out / AUTO}: the merged model in Hub format, one of {len(MERGES)} ({seconds:.0f} s in total)")


def summary(results: dict[str, list[Result]]) -> str:
    """One line per merge, then the ensemble and the parents."""
    rows = [(name if "control" in name else f"merged: {name}", mine[0]) for name, mine in results.items()]
    last = next(iter(results.values()))
    rows += [(row.model, row) for row in reversed(last[1:])]
    parent = last[1].flops
    lines = [
        [
            name,
            *(f"{100 * row.tasks[task]:.1f}" if task in row.tasks else "-" for task in last[0].tasks),
            f"{100 * row.average:.1f}",
            f"{100 * row.joint:.1f}",
            f"{row.flops / parent:.2f}x",
            f"{row.parameters / 1e3:.0f}",
        ]
        for name, row in rows
    ]
    return table(["accuracy, %", *last[0].tasks, "average", "joint", "FLOPs", "K params"], lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo_output"))
