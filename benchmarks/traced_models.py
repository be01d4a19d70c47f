"""Traced models: what a trace finds in popular models, with or without a spec file of their own.

    python benchmarks/traced_models.py [NAME ...] [-o benchmarks/traced_models.md]

Traces tiny models of popular classes (`tests/helpers/zoo.py`), writes the spec of each, checks it, and writes a table:

- `spaces`: feature spaces of the spec.
- `fixed`: the share of all indices of parameter axes, in percent, that an operation of the model or the spec fixes.
- `cuts`: the layers after which the model can be cut.
- `held for`: the most frequent reasons, with the number of indices.

Positions and other fixed parts weigh more in tiny models than in those that people use.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit.errors import ZipItError
from hf_zipit.find_spec import describe
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.text import percent
from hf_zipit.tracing.check import fixed_share, same_grouping, tally
from hf_zipit.tracing.tracer import trace
from tests.helpers.zoo import ZOO, build

HEADER = ("model", "spaces", "fixed", "cuts", "held for")


def row(name: str) -> tuple[str, ...]:
    """The line of a model, or why it has none."""
    torch.manual_seed(0)
    model, size = build(name)
    pixels = torch.zeros(1, *size)
    try:
        found = trace(model, pixels)
        binding = bind(specs.parse(describe(model, pixels, "traced", found)), model)
        same_grouping(found, binding)
    except ZipItError as error:
        return (ZOO[name], "-", "-", "-", f"refused: {error}")
    reasons = [f"{why} ({count})" for why, count in tally(found).most_common(2)]
    if binding.held:
        reasons.append(f"not observable, or not in the grammar: {len(binding.held)} axes")
    share = percent(fixed_share(found, binding))
    return (ZOO[name], str(len(binding.spaces)), share, str(len(binding.cuts)), ", ".join(reasons))


def main() -> None:
    """Trace the models that are named, or all of them."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("names", nargs="*", default=list(ZOO))
    arguments.add_argument("-o", "--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = arguments.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = []
    for name in given.names:
        rows.append(row(name))
        print(*rows[-1], sep=" | ", flush=True)
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    given.out.write_text(f"# {__doc__}\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
