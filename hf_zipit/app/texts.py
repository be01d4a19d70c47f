"""What the pages show, as HTML: plain values in, escaped text out."""

import base64
import io
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hf_zipit.app.job import Stage
from hf_zipit.app.work import Look, Outcome, Way

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
TERMS = {
    "FLOPs": "the work for one image and all tasks, as a multiple of that of one model",
    "keeps": "the share of the accuracy of its models that the merge should keep; found without labels, on images that "
    "were held out of the merge",
    "agrees": "how often the merge and the model give the same answer on these images",
    "trunk of ...": "the control: the layers of one model alone, with the outputs of all tasks fitted to them. A merge "
    "that is no better is not worth making",
    "chance": "how often the model's most frequent answer alone would agree",
    "variance held": "how much of what a model's layers tell is still told by the shared layers",
}
SCORES = {
    "joint": "the accuracy over the classes of all tasks at once",
    "parent:": "one of the models alone",
    "ensemble": "all models, one after the other: the most that a merge can hope for, at the full cost",
}


def running(title: str, stages: Sequence[Stage], began: float) -> str:
    """The work that goes on: what it is, a bar, and the time left if it can be told."""
    now = time.monotonic()
    outer = next((stage for stage in stages if stage.total), None)
    parts = [f"<b>{escape(title)}</b>", *(escape(_counted(stage)) for stage in stages[:3])]
    clock = f"{_clock(now - began)} so far"
    if outer is not None and outer.seconds_left is not None:
        clock += f", this stage about {_clock(outer.seconds_left)} more"
    share = 100 * outer.done / outer.total if outer is not None and outer.total else None
    width = "" if share is None else f' style="width:{share:.0f}%"'
    bar = f'<div class="bar{" unknown" if share is None else ""}" role="progressbar"><i{width}></i></div>'
    where = " &rsaquo; ".join(parts if stages else [*parts, "starting"])
    return f'<div class="status run"><span>{where}</span><small>{clock}</small>{bar}</div>'


def _counted(stage: Stage) -> str:
    return f"{stage.label} {stage.done}/{stage.total}" if stage.total else stage.label


def _clock(seconds: float) -> str:
    """Seconds as minutes and seconds.

    >>> _clock(75)
    '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def note(text: str, kind: str = "good") -> str:
    """A message: `good`, `bad` or `plain`."""
    return f'<div class="status {kind}" role="status">{escape(text)}</div>'


def warnings(said: Sequence[str]) -> str:
    """Warnings, one a line; nothing without any."""
    lines = "".join(f"<li>{escape(one)}</li>" for one in said)
    return f'<ul class="said">{lines}</ul>' if lines else ""


def expectation(look: Look) -> str:
    """What is known of some models before they are merged."""
    if look.unknown is not None:
        return note(f"No forecast for these: {look.unknown}. You can merge them all the same.", "plain")
    parts = [f"<p>{escape(look.relation[:1].upper() + look.relation[1:])}.</p>"]
    parts += [f'<p class="advice">{escape(one[:1].upper() + one[1:])}.</p>' for one in look.advice]
    if look.picture is not None:
        parts.append(picture(look.picture, "What to expect of each way to merge, by cost"))
    return "".join([*parts, details("The numbers", look.text, TERMS)])


def way_line(way: Way, look: Look | None) -> str:
    """A way to merge: its name, its cost, and what to expect of it."""
    facts = [f"<b>{way.flops:.2f}&times;</b> the work of one model (FLOPs for all tasks)"]
    if way.kept is not None:
        facts.append(f"should keep <b>{100 * way.kept:.1f} %</b> of the accuracy")
    elif look is not None and look.control is not None:
        facts.append("not tried: look at its neighbours")
    if look is not None and look.control is not None and way.kept is not None:
        facts.append(f"one model's layers alone keep {100 * look.control[1]:.1f} %")
    spans = "".join(f"<span>{fact}</span>" for fact in facts)
    return f'<div class="way"><b>{escape(way.name[:1].upper() + way.name[1:])}</b>{spans}</div>'


def result(outcome: Outcome) -> str:
    """A merge that was written, with its verdict, table and picture."""
    kind = {True: "good", False: "bad", None: "plain"}[outcome.worth_it]
    parts = [note(f"Written to {outcome.folder.name}. {outcome.summary or 'There is no verdict on it.'}", kind)]
    if outcome.worth_it is False:
        parts.append("<p>One model's layers alone do as well: this merge is hardly worth its place.</p>")
    if outcome.picture is not None:
        parts.append(picture(outcome.picture, "The result"))
    if outcome.chosen:
        parts.append(details("What was chosen and why, and the verdict", outcome.chosen, TERMS, opened=True))
    if outcome.table:
        parts.append(details("Accuracy on labelled images, %", outcome.table, SCORES, opened=True))
    return "".join(parts)


def details(title: str, text: str, terms: dict[str, str], opened: bool = False) -> str:
    """A text of the terminal that can be folded away, with the words that occur in it explained."""
    used = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>"
        for word, meaning in terms.items()
        if word.removesuffix(" ...") in text
    )
    blocks = "".join(map(_block, text.split("\n\n")))
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{blocks}<dl>{used}</dl></details>"


def _block(text: str) -> str:
    """A table as it is, for which columns matter; other lines as sentences and lists."""
    lines = text.splitlines()
    if any("  " in line.strip() for line in lines):
        return f"<pre>{escape(text)}</pre>"
    said = [f"<p>{escape(line)}</p>" for line in lines if not line.startswith("- ")]
    listed = [f"<li>{escape(line[2:])}</li>" for line in lines if line.startswith("- ")]
    return "".join(said) + (f'<ul class="reasons">{"".join(listed)}</ul>' if listed else "")


def picture(file: Path, text: str) -> str:
    """A PNG file, inside the page."""
    return f'<div class="picture"><img alt="{escape(text)}" src="{_inside(file.read_bytes())}"></div>'


def answers(found: Any, names: Sequence[str] = ()) -> str:
    """The answers of all tasks to an image, side by side, under the joint one.

    Args:
        found: the `Answers`.
        names: what the tasks are called, if not as in the model.
    """
    joint = "" if found.joint is None else f"Of all classes together: <b>{escape(found.joint)}</b>"
    cards = [
        _card(one, name) for one, name in zip(found.tasks, names or [one.task for one in found.tasks], strict=True)
    ]
    return f'<p class="joint">{joint}</p><div class="answers">{"".join(cards)}</div>'


def _card(answer: Any, name: str) -> str:
    """The answer of one task."""
    lines = [
        f'<div class="score"><span>{escape(label)}</span><span>{_score(value)}</span>'
        f'<i style="width:{100 * min(1.0, max(0.0, value)):.1f}%"></i></div>'
        for label, value in answer.scores.items()
    ]
    if answer.picture is not None:
        held = io.BytesIO()
        answer.picture.save(held, "PNG")
        lines.append(f'<img alt="{escape(name)}" src="{_inside(held.getvalue())}">')
    body = "".join(lines) or "<p>This task gives features, which cannot be shown as a picture.</p>"
    return f"<section><h4>{escape(name)}</h4>{body}</section>"


def _score(value: float) -> str:
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3g}"


def _inside(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
