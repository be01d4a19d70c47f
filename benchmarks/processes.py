"""How the work of a merge scales with processes.

    python benchmarks/processes.py [--processes 2] [--architecture resnet18] [--images 128]

starts this script with one and with several processes of one thread each, on the CPU, and prints the seconds of every
stage, what the processes bring, and the share of the stage that is divided among them (by Amdahl's law). The merges
must be equal. On a machine with GPUs,

    torchrun --nproc_per_node 8 benchmarks/processes.py --worker

prints the seconds of one run; compare it with `--nproc_per_node 1`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from speed import STAGES, timed_stages

from hf_zipit.merging.merger import Merger
from hf_zipit.text import table


def work(options: argparse.Namespace) -> None:
    """Merge once as one of the processes; the main one prints seconds and a rounded sum of the weights."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    torch.manual_seed(0)
    models = [timm.create_model(options.architecture).eval() for _ in range(2)]
    images = list(torch.randn(options.images, 3, 224, 224).split(options.batch_size))
    merger = Merger(models, images, tasks=["a", "b"], batch_size=options.batch_size, cache=False, verdict=False)
    with timed_stages() as stages:
        start = time.perf_counter()
        merged = merger.merge(method="select", calibrate="refit")
        stages["whole merge"] = time.perf_counter() - start
    if merger.passes.accelerator.is_main_process:
        weights = torch.cat([value.double().flatten() for value in merged.state_dict().values()])
        print(json.dumps({"seconds": stages, "weights": float(weights.norm()), "sum": float(weights.sum())}))


def run(processes: int, options: argparse.Namespace) -> dict[str, object]:
    """The result of a merge by so many processes."""
    given = [
        "--worker",
        *(
            f"--{name.replace('_', '-')}={value}"
            for name, value in vars(options).items()
            if name not in ("worker", "processes")
        ),
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), __file__, *given]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    one, many = run(1, options), run(options.processes, options)
    rows = []
    for stage in [*STAGES, "whole merge"]:
        before, after = one["seconds"][stage], many["seconds"][stage]
        gain = before / after
        share = (1 - 1 / gain) / (1 - 1 / options.processes)
        rows.append([stage, f"{before:.2f}", f"{after:.2f}", f"{gain:.2f}x", f"{100 * max(0, share):.0f} %"])
    print(table(["stage", "1 process, s", f"{options.processes} processes, s", "gain", "divided"], rows))
    apart = max(abs(one[name] / many[name] - 1) for name in ("weights", "sum"))
    print(f"the merged weights agree to {apart:.1e}")


if __name__ == "__main__":
    main()
