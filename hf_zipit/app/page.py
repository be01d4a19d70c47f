"""The page of the app: its parts from top to bottom, and what each button does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hf_zipit.app import texts
from hf_zipit.app.panels import Panels, build
from hf_zipit.app.session import DIAGNOSIS, MERGE, Form, Session
from hf_zipit.commands.terminal import message_of
from hf_zipit.sources.faults import redact

LOOK = {"theme": gr.themes.Default(primary_hue="blue"), "css": texts.STYLE}
PAUSE = 0.3  # seconds between two looks at work that goes on
Updates = dict[Any, Any]  # component -> its new state


def page(session: Session) -> gr.Blocks:
    """The page that shows and changes the state of a session.

    Args:
        session: the state; all tabs that show the page share it.
    """
    with gr.Blocks(title="hf-zipit", analytics_enabled=False) as blocks:
        panels = build(session.places)
        _Events(session, panels).connect(blocks)
    return blocks


class _Events:
    """What happens when something is clicked. Every event ends with the page as the state of the session wants it."""

    def __init__(self, session: Session, panels: Panels) -> None:
        self.session = session
        self.panels = panels

    def connect(self, blocks: gr.Blocks) -> None:
        """Connect all buttons and fields."""
        see = self.panels
        form = [see.models, see.data, see.tasks, see.method, see.calibrate, see.number, see.labelled]
        all_ = list(vars(see).values())
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        blocks.load(self.load, None, all_, **quiet)
        see.diagnose.click(self.diagnose, form, all_, **quiet)
        see.merge.click(self.merge, [*form, see.way, see.name], all_, **quiet)
        see.push.click(self.push, [see.repo, see.token, see.private], all_, **quiet)
        see.cancel.click(self.cancel, None, None, **quiet)
        see.way.change(self.way, see.way, see.way_line, **quiet)
        see.zip.click(self.zip, None, [see.file, see.status], **quiet)
        see.samples.select(self.sample, None, see.image, **quiet)
        see.image.change(self.answer, see.image, see.answers, **{**quiet, "show_progress": "minimal"})

    def diagnose(self, *form: Any) -> Iterator[Updates]:
        """Diagnose, and show how far it is until it ends."""
        yield from self._work(lambda: self.session.diagnose(_form(*form)))

    def merge(self, *values: Any) -> Iterator[Updates]:
        """Merge, and show how far it is until it ends."""
        *form, way, name = values
        yield from self._work(lambda: self.session.merge(_form(*form), int(way or 0), name or ""))

    def push(self, repo: str, token: str, private: bool) -> Iterator[Updates]:
        """Upload; the token is taken off the page at once."""
        yield {self.panels.token: gr.update(value="")}
        yield from self._work(lambda: self.session.push(repo or "", token or "", private), token)

    def cancel(self) -> None:
        """End what runs; the event that follows it sees that it has ended."""
        self.session.cancel()

    def load(self) -> Iterator[Updates]:
        """Fill a page that was opened or loaded again."""
        see, form = self.panels, self.session.form
        if form is not None:
            yield {
                see.models: gr.update(value=list(form.models)),
                see.data: gr.update(value=list(form.data)),
                see.labelled: gr.update(value=list(form.labelled)),
                see.tasks: ", ".join(form.tasks),
                see.method: form.method,
                see.calibrate: form.calibrate,
                see.number: form.num_images,
            }
        yield from self.follow()
        yield self._looked() | self._made()

    def _work(self, begin: Callable[[], None], secret: str | None = None) -> Iterator[Updates]:
        """Begin some work and follow it; say why, if it cannot begin."""
        try:
            begin()
        except Exception as error:
            yield {self.panels.status: texts.note(redact(message_of(error), secret), "bad")}
            return
        yield from self.follow()

    def follow(self) -> Iterator[Updates]:
        """Show how far the work is until it ends, then the whole state."""
        see, session = self.panels, self.session
        while session.busy:
            job = session.job
            yield {
                see.status: texts.running(job.title, job.stages, job.began),
                see.cancel: gr.update(visible=True),
                **{button: gr.update(interactive=False) for button in (see.diagnose, see.merge, see.push)},
            }
            job.wait(PAUSE)
        yield self._state()

    def _state(self) -> Updates:
        """What may have changed by the work that ended."""
        see, session = self.panels, self.session
        title = None if session.job is None else session.job.title
        state: Updates = {
            see.status: self._ended(),
            see.cancel: gr.update(visible=False),
            **{button: gr.update(interactive=True) for button in (see.diagnose, see.merge, see.push)},
            see.models: gr.update(choices=session.places.models()),
            see.data: gr.update(choices=session.places.image_sets()),
            see.labelled: gr.update(choices=session.places.image_sets()),
        }
        return state | (self._looked() if title == DIAGNOSIS else {}) | (self._made() if title == MERGE else {})

    def _looked(self) -> Updates:
        """What is known of the models."""
        see, look, ways = self.panels, self.session.look, self.session.ways
        return {
            see.expectation: "" if look is None else texts.expectation(look),
            see.way: gr.update(maximum=max(1, len(ways) - 1), value=0, visible=len(ways) > 1),
            see.way_line: texts.way_line(ways[0], look),
        }

    def _made(self) -> Updates:
        """The merge."""
        see, outcome = self.panels, self.session.outcome
        if outcome is None:
            return {see.name: self.session.places.free_name(), see.made: gr.update(visible=False)}
        return {
            see.name: self.session.places.free_name(),
            see.made: gr.update(visible=True),
            see.result: texts.result(outcome),
            see.samples: [_opened(file) for file in outcome.samples],
            see.image: None,
            see.answers: "",
            see.file: gr.update(value=None, visible=False),
        }

    def _ended(self) -> str:
        """How the work ended."""
        session = self.session
        job = session.job
        if job is None:
            return ""
        if job.cancelled:
            return texts.note(f"{job.title} cancelled; nothing of it is left.", "plain")
        if job.fault is not None:
            return texts.note(job.fault, "bad") + texts.warnings(job.said)
        text = f"{job.title} done." if session.uploaded is None else f"Uploaded: {session.uploaded}"
        return texts.note(text) + texts.warnings(job.said)

    def way(self, number: float) -> str:
        """The line about the chosen way to merge."""
        ways = self.session.ways
        return texts.way_line(ways[min(int(number), len(ways) - 1)], self.session.look)

    def zip(self) -> Updates:
        """Offer a zip file of the merge."""
        try:
            return {self.panels.file: gr.update(value=str(self.session.zipped()), visible=True)}
        except Exception as error:
            return {self.panels.status: texts.note(redact(message_of(error)), "bad")}

    def sample(self, chosen: gr.SelectData) -> Image.Image | None:
        """The image that was chosen among the samples."""
        made = self.session.outcome
        return None if made is None else _opened(made.samples[int(chosen.index)])

    def answer(self, image: Image.Image | None) -> str:
        """What the merge says of an image."""
        if image is None:
            return ""
        try:
            return texts.answers(self.session.try_image(image))
        except Exception as error:
            return texts.note(redact(message_of(error)), "bad")


def _form(models: Any, data: Any, tasks: str, method: str, calibrate: str, number: Any, labelled: Any) -> Form:
    """What was entered."""
    return Form(
        models or (), data or (), (tasks or "").split(","), method, calibrate, int(number or 0) or None, labelled or ()
    )


def _opened(file: Path) -> Image.Image:
    """An image in memory."""
    with Image.open(file) as image:
        return image.convert("RGB")
