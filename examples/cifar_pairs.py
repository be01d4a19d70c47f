"""Train two classifiers on disjoint halves of CIFAR's classes, merge them by several methods, and print one table.

    python examples/cifar_pairs.py CIFAR OUT --model resnet20 --width 2 --cuts layer2 layer1
    python examples/cifar_pairs.py CIFAR OUT --model vit --same-init --cuts vit.layers.1
    python examples/cifar_pairs.py CIFAR OUT --model resnet20 --targets openai/clip-vit-base-patch32

CIFAR is a Hub id (`uoft-cs/cifar10`) or a folder with `train.parquet` and `test.parquet`. `--split` is the seed of
the class split, or `even` for even and odd classes. Models are saved to OUT in Hub format, and existing ones are not
trained again, so two processes with `--only a` and `--only b` can share the work. The table, with controls, and a plot
are written to OUT. Merges that it already contains are not repeated.

With `--targets` both models learn to predict fixed vectors, one for each class, as in the papers: the text features of
a CLIP model, or `codes`, random orthogonal vectors that need no download.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from cifar import MEAN, STD, Towards, build, class_count, class_vectors, halves, only, read, save
from merge_table import compared, merging_arguments
from training import Pixels, accuracy, fit

from hf_zipit.comparison.report import comparison_table
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.load import load_source

RATES = {"resnet20": 0.2, "resnet18": 0.2, "vgg11": 0.03, "vgg11_bn": 0.1, "vit": 2e-3}


@dataclass(frozen=True)
class Training:
    """How a parent is trained.

    Attributes:
        model: a key of `RATES`.
        width: its width multiplier.
        targets: as of `class_vectors`.
        epochs: passes over the images.
        batch_size: images per step.
        bf16: as of `fit`.
        base: the folder of a model whose weights, except the classifier's, are the start.
    """

    model: str = "resnet20"
    width: float = 1
    targets: str = "labels"
    epochs: int = 10
    batch_size: int = 250
    bf16: bool = True
    base: Path | None = None


def train(how: Training, data: str, classes: list[int], init: int, seed: int, out: Path) -> None:
    """Train one parent, print its test accuracy, and save it.

    Args:
        how: model and schedule.
        data: Hub id or folder of the images.
        classes: its classes.
        init: seed of its first weights.
        seed: seed of the order of images, and of their crops and flips.
        out: the folder for the model.
    """
    images, labels, names = read(data, "train")
    mine = [names[i] for i in classes]
    vectors = class_vectors(names, how.targets)
    model = build(how.model, how.width, mine if vectors is None else vectors.shape[1], init)
    if how.base is not None:
        known, own = load_source(how.base).model.state_dict(), model.state_dict()
        model.load_state_dict({**own, **{k: v for k, v in known.items() if v.shape == own[k].shape}})
    learner = model if vectors is None else Towards(model, vectors[classes])
    torch.manual_seed(seed)
    pixels = Pixels(*only(classes, images, labels), MEAN, STD).to(Accelerator().device)
    vit = how.model == "vit"
    fit(
        learner,
        pixels.loader(how.batch_size),
        epochs=how.epochs,
        lr=RATES[how.model] * (1 if how.base is None else 0.3),
        optimiser="adamw" if vit else "sgd",
        weight_decay=0.05 if vit else 5e-4,
        bf16=how.bf16,
        name=out.name,
    )
    if vectors is not None:
        model = learner.folded(mine)
    test = Pixels(*only(classes, *read(data, "test")[:2]), MEAN, STD, pad=0, flip=False)
    print(f"{out.name}: {100 * accuracy(model, test):.1f} % of {len(test)} test images", flush=True)
    save(model, out, mine)


def parents(args: argparse.Namespace) -> list[Path]:
    """The folders of both parents; missing parents are trained."""
    fields = ("model", "width", "targets", "epochs", "batch_size", "bf16")
    how = Training(**{name: getattr(args, name) for name in fields})
    found = []
    for number, half in enumerate("ab"):
        init = args.init + (0 if args.same_init else number)
        targets = "" if args.targets == "labels" else "-" + args.targets.rpartition("/")[2]
        out = args.out / f"{args.model}-w{args.width:g}{targets}-s{args.split}-{half}-i{init}"
        if half in args.only and not (out / "model.safetensors").exists():
            classes = halves(class_count(args.data), args.split)[number]
            train(how, args.data, classes, init, 1000 * init + ord(half), out)
        found.append(out)
    return found


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=sorted(RATES), default="resnet20")
    parser.add_argument("--width", type=float, default=1)
    parser.add_argument("--targets", default="labels", help="labels, codes, or a CLIP model")
    parser.add_argument("--split", default="0", help="seed of the class split, or even")
    parser.add_argument("--init", type=int, default=0, help="seed of the first model; the second has the next one")
    parser.add_argument("--same-init", action="store_true", help="both models start from the same weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--only", choices=["a", "b"], nargs="+", default=["a", "b"], help="train this one, merge nothing"
    )
    merging_arguments(parser, cuts=[])
    return parser.parse_args()


def main() -> None:
    """Train, merge, evaluate."""
    args = parse()
    folders = parents(args)
    if len(args.only) == 2:
        merger = Merger(folders, args.data, num_images=args.num_images)
        print(comparison_table(compared(merger, args, args.data), merger.tasks))


if __name__ == "__main__":
    main()
