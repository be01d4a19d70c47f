"""The pictures of the README and of the pages "How it works". `docs/make.py` writes them to `docs/pictures/`."""

from collections.abc import Callable, Sequence

from svg import BLUE, GREEN, GREY, ORANGE, Picture

A = [70 * i + 45 for i in range(4)]  # places of the units of model A, and of model B
B = [70 * i + 345 for i in range(4)]
MERGED = [150, 250, 350, 450]
WIDTH = 600


def column(picture: Picture, x: float, width: float, colour: str, layers: Sequence[str]) -> None:
    """Layers of a model from top to bottom, fed by an image."""
    picture.text(x + width / 2, 58, "image")
    for i, words in enumerate(layers):
        top = 84 + 50 * i
        picture.arrow((x + width / 2, top - 16), (x + width / 2, top))
        picture.box(x, top, width, 34, words, colour)


def merge() -> Picture:
    """What a merge does."""
    picture = Picture("Two models with a forward pass each become one trunk with a head per task", 620, 320)
    picture.text(125, 20, "two models", 19, weight=700)
    layers = ["layer 1", "layer 2", "layer 3"]
    column(picture, 15, 100, BLUE, [*layers, "pets"])
    column(picture, 135, 100, ORANGE, [*layers, "birds"])
    picture.text(125, 295, "2 forward passes")
    picture.text(300, 130, "merge", 19, weight=700)
    picture.arrow((262, 155), (340, 155))
    picture.text(300, 180, "no labels", 15)
    picture.text(300, 200, "no training", 15)
    picture.text(485, 20, "one model", 19, weight=700)
    column(picture, 430, 110, GREEN, layers)
    for x, colour, words in ((365, BLUE, "pets"), (500, ORANGE, "birds")):
        picture.line((485, 218), (485, 226), (x + 55, 226), (x + 55, 232))
        picture.box(x, 234, 110, 34, words, colour)
    picture.text(485, 295, "1 forward pass, 2 small heads")
    return picture


def spaces() -> Picture:
    """Which axes of the weights are one feature space."""
    picture = Picture("Weights whose edges of one colour belong to one feature space", WIDTH, 270)
    weights = (
        (30, "conv1", "image", GREY, "a", BLUE),
        (230, "conv2", "a", BLUE, "b", ORANGE),
        (430, "fc", "b", ORANGE, "classes", GREY),
    )
    for x, name, reads, above, writes, left in weights:
        picture.add("rect", x=x + 20, y=70, width=110, height=90, fill=GREY, fill_opacity=0.18)
        picture.line((x + 20, 66), (x + 130, 66), colour=above, width=9)
        picture.line((x + 16, 70), (x + 16, 160), colour=left, width=9)
        picture.text(x + 75, 115, name, weight=700)
        picture.text(x + 75, 42, f"reads {reads}", colour=above)
        picture.text(x + 75, 182, f"writes {writes}", colour=left)
    picture.arrow((172, 115), (226, 115))
    picture.arrow((372, 115), (426, 115))
    picture.text(300, 225, "A new order of the units of space a", 17)
    picture.text(300, 248, "moves every blue edge, and changes no output.", 17)
    return picture


def matched(title: str, groups: Sequence[Sequence[int]], kept: Sequence[int], words: Sequence[str]) -> Picture:
    """Units of two models above, merged units below; units 0 to 3 are those of A, 4 to 7 those of B."""
    picture, places = Picture(title, WIDTH, 270), [*A, *B]
    colours = [BLUE] * 4 + [ORANGE] * 4
    picture.text((A[0] + A[-1]) / 2, 22, "units of model A", colour=BLUE, weight=700)
    picture.text((B[0] + B[-1]) / 2, 22, "units of model B", colour=ORANGE, weight=700)
    for x, group in zip(MERGED, groups, strict=True):
        for unit in group:
            dashed = bool(kept) and unit not in kept
            picture.line((places[unit], 66), (x, 172), colour=colours[unit], width=3, dashed=dashed)
    for unit, x in enumerate(places):
        picture.unit(x, 66, colours[unit])
        if kept and unit not in kept:
            picture.text(x, 66, "×", 22, "#ffffff", weight=700)  # noqa: RUF001
    for number, (x, group) in enumerate(zip(MERGED, groups, strict=True), 1):
        members = [unit for unit in group if not kept or unit in kept]
        picture.unit(x, 172, colours[members[0]], colours[members[-1]], 24)
        picture.text(x, 172, str(number), colour="#ffffff", weight=700)
    for i, line in enumerate(words):
        picture.text(WIDTH / 2, 225 + 23 * i, line)
    return picture


def zipped() -> Picture:
    """Units merged across and within models."""
    groups = [(0, 4), (1, 2), (3, 5), (6, 7)]
    words = ["The most alike are merged: across models (1 and 3),", "and within one model (2 and 4)."]
    return matched("Eight units of two models become four, across and within models", groups, (), words)


def selected() -> Picture:
    """Units kept, and others merged into them."""
    groups = [(0, 4), (1, 2, 5), (3, 6), (7,)]
    words = [
        "Four units are kept. The others (crossed out) are merged into them:",
        "the next layers are fitted to do without them.",
    ]
    return matched("Four of eight units are kept, the others are merged into them", groups, (0, 1, 6, 7), words)


def refit() -> Picture:
    """A layer of the merge fitted to the parents."""
    picture = Picture("A layer of the merged model is fitted to what the parents computed", WIDTH, 270)
    for y, words, colour, names in ((40, "parents", BLUE, "W"), (170, "merge", GREEN, "Ŵ")):
        picture.text(50, y + 22, words, colour=colour, weight=700)
        for i, x in enumerate((120, 330)):
            picture.arrow((x - 25, y + 22), (x, y + 22))
            picture.box(x, y, 120, 44, f"{names}{'₁₂'[i]}", colour)
        picture.arrow((240, y + 22), (330, y + 22))
        picture.line((450, y + 22), (484, y + 22))
    picture.text(285, 170, "x", 20, weight=700)
    picture.text(505, 62, "y", 20, weight=700)
    picture.text(508, 192, "≈ y", 20, weight=700)
    picture.arrow((505, 80), (505, 175), dashed=True)
    picture.text(550, 128, "target", 16)
    picture.text(300, 245, "Ŵ₂ is solved for, so that it maps x to y. Then the next layer.")
    return picture


def bars(picture: Picture, x: float, title: str, colour: str, classes: Sequence[tuple[str, float]]) -> None:
    """Probabilities of the classes of one task."""
    picture.text(x + 130, 22, title, colour=colour, weight=700)
    for i, (name, share) in enumerate(classes):
        y = 55 + 36 * i
        picture.text(x + 85, y, name, 16, anchor="end")
        picture.add("rect", x=x + 95, y=y - 11, width=130 * share, height=22, rx=3, fill=colour)
        picture.text(x + 103 + 130 * share, y, f"{share:.2f}", 15, anchor="start")


def joint() -> Picture:
    """The answer over the classes of all tasks."""
    picture = Picture("Softmax per task, and the largest probability of all tasks is the answer", WIDTH, 205)
    bars(picture, 0, "head pets", BLUE, [("cat", 0.81), ("dog", 0.12), ("rabbit", 0.07)])
    bars(picture, 300, "head birds", ORANGE, [("owl", 0.45), ("duck", 0.33), ("wren", 0.22)])
    picture.text(300, 165, "An image of a cat: cat 0.81 is the largest of all six.")
    picture.text(300, 188, "It fails if a foreign head is surer than the right one.")
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "merge": merge,
    "spaces": spaces,
    "zip": zipped,
    "select": selected,
    "refit": refit,
    "joint": joint,
}
