"""Train two classifiers on disjoint halves of CIFAR's classes, merge them in several ways, and print one table.

    python examples/cifar_pairs.py CIFAR OUT --model resnet20 --width 2 --split 0 --epochs 8
    python examples/cifar_pairs.py CIFAR OUT --model vit --same-init

CIFAR is a Hub id (`uoft-cs/cifar10`) or a folder with `train.parquet` and `test.parquet`. `--split` shuffles the
classes. The models are Hub-format folders in OUT; those that are there already are not trained again, so two
processes with `--only a` and `--only b` can share the work.
"""

import argparse
from pathlib import Path

import torch
from cifar import MEAN, STD, build, halves, only, read, save
from training import Pixels, accuracy, fit

RATES = {"resnet20": 0.2, "vgg11": 0.03, "vgg11_bn": 0.1, "vit": 2e-3}


def train(args: argparse.Namespace, half: str, init: int, out: Path) -> None:
    """Train one parent, report its test accuracy, and write it."""
    images, labels, names = read(args.data, "train")
    classes = halves(len(names), args.split)["ab".index(half)]
    mine = [names[i] for i in classes]
    model = build(args.model, args.width, mine, init)
    torch.manual_seed(1000 * init + ord(half))
    batches = Pixels(*only(classes, images, labels), MEAN, STD).loader(args.batch_size)
    vit = args.model == "vit"
    fit(
        model,
        batches,
        epochs=args.epochs,
        lr=RATES[args.model],
        optimiser="adamw" if vit else "sgd",
        weight_decay=0.05 if vit else 5e-4,
        bf16=args.bf16,
        name=out.name,
    )
    test = Pixels(*only(classes, *read(args.data, "test")[:2]), MEAN, STD, pad=0, flip=False)
    print(f"{out.name}: {100 * accuracy(model, test):.1f} % of {len(test)} test images", flush=True)
    save(model, out, mine)


def parents(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of both parents; those that are not there yet are trained."""
    found = {}
    for number, half in enumerate("ab"):
        init = args.init + (0 if args.same_init else number)
        out = args.out / f"{args.model}-w{args.width:g}-s{args.split}-{half}-i{init}"
        if half in args.only and not (out / "model.safetensors").exists():
            train(args, half, init, out)
        found[half] = out
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=sorted(RATES), default="resnet20")
    parser.add_argument("--width", type=float, default=1)
    parser.add_argument("--split", type=int, default=0, help="how the classes are shuffled")
    parser.add_argument("--init", type=int, default=0, help="seed of the first model; the second has the next")
    parser.add_argument("--same-init", action="store_true", help="both models start from the same weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", choices=["a", "b", "ab"], default="ab", help="train only these")
    return parser.parse_args()


if __name__ == "__main__":
    parents(parse())
