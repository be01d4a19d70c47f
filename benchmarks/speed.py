"""What a merge costs, beside the forward passes that it needs, measured in the same run.

    python benchmarks/speed.py [--pairs resnet50 vit_base_patch16_224] [--images 64] [--rounds 3] [--threads 1]
                               [--device cuda]

Prints a table for each pair of models with random weights and images, one line per merge:

- `s`: median seconds of the merge over the rounds. Forward passes and merges take turns. With one thread on the CPU
  these are CPU seconds, which other work on the machine changes less.
- `over both parents`: the same as a multiple of a forward pass of both parents over these images, in the faster of the
  two memory layouts.
- `over what it needs`: as a multiple of 1.5 times that pass: both parents, and then the merge for its norms.
- the stages of the merge as shares of its time. What is left is loading, building and checking.

`again` is a merge by another method once the statistics are known. Then come the seconds of matching, and the peak
memory beyond models and forward pass. Every pair runs in a process of its own. One thread is the default.
"""

import argparse
import contextlib
import copy
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import timm
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit.assembly.parents import Parents
from hf_zipit.matching.matcher import Matcher
from hf_zipit.merging import merger as merging
from hf_zipit.merging import observe
from hf_zipit.merging.merger import Merger
from hf_zipit.text import table

NEEDED = 1.5  # both parents, and the merge for its norms, relative to both parents
MERGES = {"zip, batchnorm": ("zip", "batchnorm"), "select, refit": ("select", "refit")}
STAGES = {"observe": (observe, "collect"), "match": (Matcher, "matches"), "build": (Parents, "assemble")}
STAGES["calibrate"] = (merging.Merger, "_calibrate")


@contextlib.contextmanager
def timed_stages(now: Callable[[], float] = time.perf_counter) -> Iterator[dict[str, float]]:
    """Seconds by this clock of every stage of the merges inside the context."""
    seconds = dict.fromkeys(STAGES, 0.0)
    plain = {name: getattr(*place) for name, place in STAGES.items()}

    def timed(name: str) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            start = now()
            found = plain[name](*arguments, **options)
            seconds[name] += now() - start
            return found

        return run

    for name, (holder, attribute) in STAGES.items():
        setattr(holder, attribute, timed(name))
    try:
        yield seconds
    finally:
        for name, (holder, attribute) in STAGES.items():
            setattr(holder, attribute, plain[name])


class Pair:
    """Two models of one architecture with random weights, and random images for them."""

    def __init__(self, architecture: str, images: int, batch_size: int, device: str) -> None:
        torch.manual_seed(0)
        self.models = [timm.create_model(architecture).eval() for _ in range(2)]
        size = self.models[0].pretrained_cfg["input_size"]
        self.batches = list(torch.randn(images, *size).split(batch_size))
        self.batch_size = batch_size
        self.device = torch.device(device)
        alone = device == "cpu" and torch.get_num_threads() == 1
        self.now = time.process_time if alone else time.perf_counter

    def forward(self) -> float:
        """Seconds of a pass of both parents, in the faster memory layout."""
        return min(self._forward(layout) for layout in (torch.contiguous_format, torch.channels_last))

    @torch.inference_mode()
    def _forward(self, layout: torch.memory_format) -> float:
        nets = [copy.deepcopy(model).to(self.device).to(memory_format=layout) for model in self.models]
        start = self.now()
        for pixels in self.batches:
            pixels = pixels.to(self.device).contiguous(memory_format=layout)
            for net in nets:
                net(pixels)
        self._wait()
        return self.now() - start

    def merge(self, method: str, calibrate: str) -> float:
        """Seconds of a merge."""
        start = self.now()
        self.merger().merge(method=method, calibrate=calibrate)
        self._wait()
        return self.now() - start

    def again(self) -> float:
        """Seconds of a merge by permute, without calibration, once the statistics are known."""
        merger = self.merger()
        merger.merge(method="zip", calibrate="none")
        start = self.now()
        merger.merge(method="permute", calibrate="none")
        self._wait()
        return self.now() - start

    def merger(self) -> Merger:
        """Opens the models for merges without a verdict or a cache."""
        options = {"batch_size": self.batch_size, "device": str(self.device), "cache": False, "verdict": False}
        return Merger(self.models, self.batches, tasks=["a", "b"], **options)

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def memory() -> float:
    """Peak memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(architecture: str, options: argparse.Namespace) -> None:
    """Measure one pair and print its table."""
    torch.set_num_threads(options.threads)
    warm = Pair("resnet18", 4, 2, options.device)
    warm.merge("zip", "refit")  # imports and first calls
    pair = Pair(architecture, options.images, options.batch_size, options.device)
    forwards = [pair.forward()]
    plain = memory()
    lines = []
    peaks = {}
    matching = 0.0
    for name, chosen in MERGES.items():
        seconds = []
        rounds = options.rounds if "refit" not in name else 1
        with timed_stages(pair.now) as stages:
            for _ in range(rounds):
                seconds.append(pair.merge(*chosen))
                forwards.append(pair.forward())
        peaks[name] = memory() - plain
        shares = [f"{100 * spent / sum(seconds):.0f} %" for spent in stages.values()]
        lines.append([name, median(seconds), *shares])
        matching = matching or stages["match"] / rounds
    both = median(forwards)
    lines.append(["again", pair.again(), *["-"] * len(STAGES)])
    rows = [
        [name, f"{took:.2f}", f"{took / both:.2f}", f"{took / both / NEEDED:.2f}", *shares]
        for name, took, *shares in lines
    ]
    where = f"{options.images} images, {options.threads} thread(s), {options.device}"
    print(f"\n{architecture}, {where}; both parents {both:.2f} s")
    print(table(["merge", "s", "over both parents", "over what it needs", *STAGES], rows))
    print(f"matching all spaces by zip: {matching:.2f} s")
    print("peak memory beyond models and forward pass: " + ", ".join(f"{k} {v:.2f} GB" for k, v in peaks.items()))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["resnet50", "vit_base_patch16_224"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if len(options.pairs) == 1:
        measure(options.pairs[0], options)
        return
    print(f"torch {torch.__version__}, {platform.machine()}", flush=True)
    given = [f"--{name.replace('_', '-')}={value}" for name, value in vars(options).items() if name != "pairs"]
    for architecture in options.pairs:
        subprocess.run([sys.executable, __file__, "--pairs", architecture, *given], check=True)


if __name__ == "__main__":
    main()
