"""Odd image files among ordinary ones."""

import io
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz import odd
from tests.fuzz.law import OUT, Case
from tests.fuzz.world import SIDE, World, picture, write_images

Saved = tuple[bytes, str]  # the file, and its suffix
BASE = picture(7)
GREY = BASE.convert("L")


def _file(image: Image.Image, suffix: str, **options: object) -> Saved:
    out = io.BytesIO()
    image.save(out, Image.registered_extensions()[suffix], **options)
    return out.getvalue(), suffix


def _sixteen() -> Image.Image:
    return Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)


def _palette() -> Image.Image:
    few = Image.fromarray((np.asarray(GREY) // 64 * 64).astype(np.uint8))
    return few.convert("RGB").quantize(16)


def _palette_plain() -> Image.Image:
    return _palette().convert("RGB")


def _rotated() -> Saved:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    return _file(BASE, ".png", exif=exif)


def _opaque() -> Image.Image:
    out = BASE.copy()
    out.putalpha(255)
    return out


# the same pixels in another form: name -> (the form, the plain picture)
SAME: dict[str, tuple[Callable[[], Saved], Callable[[], Image.Image]]] = {
    "grey": (lambda: _file(GREY, ".png"), lambda: GREY.convert("RGB")),
    "bmp": (lambda: _file(BASE, ".bmp"), lambda: BASE),
    "tiff": (lambda: _file(BASE, ".tiff"), lambda: BASE),
    "lossless webp": (lambda: _file(BASE, ".webp", lossless=True), lambda: BASE),
    "upper case": (lambda: (_file(BASE, ".png")[0], ".PNG"), lambda: BASE),
    "16 bits, grey, png": (lambda: _file(_sixteen(), ".png"), lambda: GREY.convert("RGB")),
    "16 bits, grey, tiff": (lambda: _file(_sixteen(), ".tiff"), lambda: GREY.convert("RGB")),
    "palette": (lambda: _file(_palette(), ".png"), _palette_plain),
    "gif of one picture": (lambda: _file(_palette(), ".gif"), _palette_plain),
    "opaque alpha": (lambda: _file(_opaque(), ".png"), lambda: BASE),
    "grey with opaque alpha": (lambda: _file(GREY.convert("LA"), ".png"), lambda: GREY.convert("RGB")),
    "turned by EXIF": (_rotated, lambda: BASE.transpose(Image.Transpose.ROTATE_270)),
}
# readable in some way: which pixels they have is a matter of convention
READABLE: dict[str, Callable[[], Saved]] = {
    "CMYK jpeg": lambda: _file(BASE.convert("CMYK"), ".jpg"),
    "YCbCr jpeg": lambda: _file(BASE, ".jpeg"),
    "one bit": lambda: _file(BASE.convert("1"), ".png"),
    "transparent": lambda: _file(Image.merge("RGBA", [*BASE.split(), GREY]), ".png"),
    "palette with transparency": lambda: _file(_palette(), ".png", transparency=0),
    "transparent colour": lambda: _file(BASE, ".png", transparency=(0, 0, 0)),
    "float tiff": lambda: _file(Image.fromarray(np.asarray(GREY, dtype=np.float32) / 255), ".tiff"),
    "32-bit tiff": lambda: _file(Image.fromarray(np.asarray(GREY, dtype=np.int32)), ".tiff"),
    "animated gif": lambda: _file(_palette(), ".gif", save_all=True, append_images=[_palette().rotate(90)]),
    "animated png": lambda: _file(BASE, ".png", save_all=True, append_images=[BASE.rotate(90)]),
    "two pages": lambda: _file(BASE, ".tiff", save_all=True, append_images=[BASE]),
    "1 x 1": lambda: _file(picture(1, 1), ".png"),
    "1 x 300": lambda: _file(BASE.resize((1, 300)), ".png"),
    "300 x 1": lambda: _file(BASE.resize((300, 1)), ".png"),
    "large": lambda: _file(BASE.resize((900, 700)), ".png"),
    "png called jpg": lambda: (_file(BASE, ".png")[0], ".jpg"),
    "jpeg called png": lambda: (_file(BASE, ".jpg")[0], ".png"),
    "Lab tiff": lambda: _file(Image.fromarray(np.asarray(BASE), "RGB").convert("YCbCr"), ".tiff"),
}
UNREADABLE: dict[str, Callable[[], Saved]] = {
    "empty": lambda: (b"", ".png"),
    "text called png": lambda: (b"no picture\n", ".png"),
    "half a png": lambda: (_file(BASE, ".png")[0][:200], ".png"),
    "half a jpeg": lambda: (_file(BASE, ".jpg")[0][:400], ".jpg"),
    "html called jpg": lambda: (b"<!DOCTYPE html><html></html>", ".jpg"),
    "the first bytes of a png": lambda: (_file(BASE, ".png")[0][:20], ".png"),
    "zeros called tiff": lambda: (b"\0" * 100, ".tiff"),
    "svg called png": lambda: (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ".png"),
}


def _flipped(rng: Random) -> Saved:
    data, suffix = _file(BASE, rng.choice((".png", ".jpg", ".gif", ".tiff", ".webp", ".bmp")))
    return odd.broken(rng, data)[0], suffix


def make(rng: Random, world: World, folder: Path) -> Case:
    """A merge or an evaluation on images of which one is odd."""
    family = rng.choice(("vit", "vit", "vit", "timm-resnet"))  # those of a vit are the fastest
    parents = world.families[family]
    data = folder / "data"
    write_images(data, ("ape", "bee"), 2)
    kind = rng.choice(("same", "same", "readable", "readable", "unreadable", "flipped"))
    reference = None
    count: int | None = 5
    if kind == "same":
        name = rng.choice(sorted(SAME))
        form, plain = SAME[name]
        saved, succeeds = form(), True
        write_images(folder / "plain", ("ape", "bee"), 2)
        plain().save(folder / "plain" / "ape" / "odd.png")
        reference = ["merge", *parents, "--data", folder / "plain", "-o", OUT]
    elif kind == "readable":
        name = rng.choice(sorted(READABLE))
        saved, succeeds = READABLE[name](), True
    elif kind == "unreadable":
        name = rng.choice(sorted(UNREADABLE))
        saved, succeeds = UNREADABLE[name](), False
    else:
        name, saved, succeeds, count = "bits flipped or cut", _flipped(rng), None, None
    (data / "ape" / f"odd{saved[1]}").write_bytes(saved[0])
    told = f"{family}: an image: {name} ({saved[1]}, of {SIDE} x {SIDE})"
    skip: list[str] = []
    if kind == "unreadable" and rng.random() < 0.4:
        skip, succeeds, count = ["--skip-bad-images", rng.choice("19")], True, 4
    if kind != "same" and rng.random() < 0.5:
        return Case(told, ["eval", world.merges["full-vit"][0], "--data", data, "--json", *skip], succeeds=succeeds)
    command = ["merge", *parents, "--data", data, "-o", OUT, *skip]
    return Case(told, command, images=count, succeeds=succeeds, same=reference)
