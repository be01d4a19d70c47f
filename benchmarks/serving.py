"""What a merge takes for all tasks, in time, beside what its FLOPs say.

    python benchmarks/serving.py [--pairs resnet50 vit_small_patch16_224] [--threads 1] [--rounds 9]

Two models of each architecture, with random weights, are merged whole and at a cut in the middle. Merge and parent run
in four ways: as they are (`eager`), by `torch.compile`, as a program of `torch.export`, and as an ONNX file by
onnxruntime. They take turns, so that both meet the same load.

`time` is the median of the merge over the median of one parent that runs in the same way, and `off` is by how much it
differs from the ratio of their FLOPs.
"""

import argparse
import copy
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.export import Dim

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit import export
from hf_zipit.evaluation.latency import BATCHES, latencies
from hf_zipit.merging.merger import Merger
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import working_copy
from hf_zipit.saving.onnx_file import open_onnx, write_onnx
from hf_zipit.text import table

CUTS = {"resnet50": "layer3.2", "vit_small_patch16_224": "blocks.5"}
Run = Callable[[Tensor], object]


def ways(model: nn.Module, folder: Path, size: tuple[int, ...]) -> dict[str, Run]:
    """A model as it is run in each way; files are written to the folder."""
    model = working_copy(model, torch.device("cpu"))
    compiled = torch.compile(copy.deepcopy(model), dynamic=False)
    file = folder / "model.onnx"
    if isinstance(model, ZipItPreTrainedModel):
        program = torch.export.load(export(model, folder / "model.pt2", format="torch"))
        export(model, file)
    else:
        shapes = ({0: Dim("batch")},)
        program = torch.export.export(model, (torch.zeros(2, *size),), dynamic_shapes=shapes, strict=False)
        write_onnx(program, ["logits"], {}, file)
    return {"eager": model, "compiled": compiled, "torch.export": program.module(), "onnxruntime": open_onnx(file)}


def measure(architecture: str, options: argparse.Namespace) -> None:
    """Print the table of one architecture."""
    torch.manual_seed(0)
    models = [timm.create_model(architecture).eval().requires_grad_(False) for _ in range(2)]
    size = models[0].pretrained_cfg["input_size"]
    merger = Merger(models, list(torch.randn(8, *size).split(4)), tasks=["a", "b"], cache=False, verdict=False)
    rows = []
    for cut in (None, CUTS.get(architecture)):
        merged = merger.merge(method="zip", calibrate="none", cut=cut).eval()
        flops = merger.parents.layer_costs().flops(merger.parents.plan(cut).depth, {}, merger.parents.plan(cut).gathers)
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            mine = ways(merged, Path(one), size)
            parent = ways(models[0], Path(other), size)
            for batch in BATCHES:
                for way in mine:
                    pixels = torch.randn(batch, *size)
                    found = latencies({"merge": mine[way], "parent": parent[way]}, pixels, options.rounds)
                    ratio = found["merge"] / found["parent"]
                    seconds = [f"{1000 * found[name]:.1f}" for name in ("parent", "merge")]
                    row = [cut or "none", way, str(batch), *seconds, f"{ratio:.3f}", f"{flops:.3f}"]
                    rows.append([*row, f"{100 * (ratio / flops - 1):+.1f} %"])
    print(f"\n{architecture}, {options.threads} thread(s), torch {torch.__version__}, {platform.machine()}")
    print(table(["cut", "way", "images", "parent ms", "merge ms", "time", "FLOPs", "off"], rows), flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(CUTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for architecture in options.pairs:
        measure(architecture, options)


if __name__ == "__main__":
    main()
