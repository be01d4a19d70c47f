"""A page that shows one merged model: an image in, the answers of all tasks side by side and the joint one out."""

from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image

from hf_zipit.app import texts
from hf_zipit.app.answers import answers
from hf_zipit.errors import ZipItError
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.access import NOTHING, Access


def space(model: str | Path, access: Access = NOTHING) -> gr.Blocks:
    """The page of a merged model, for a Space or anywhere else; it has to be launched.

    Args:
        model: a Hub id, `user/name` or `user/name@revision`, or a folder.
        access: what the user allows when it is read.

    Raises:
        SourceError: it is not a merged model, or cannot be downloaded.

    >>> space("user/merged").launch()  # doctest: +SKIP
    """
    merged = load_merged(model, access)
    tasks = merged.config.tasks

    def answer(image: Image.Image | None) -> str:
        if image is None:
            return ""
        try:
            return texts.answers(answers(merged, image))
        except ZipItError as error:
            return texts.note(str(error), "bad")

    named = escape(Path(model).name if Path(model).is_dir() else str(model))
    with gr.Blocks(title=named, analytics_enabled=False) as blocks:
        gr.HTML(
            f"<style>{texts.STYLE}</style><h1>{named}</h1><p>One model for {len(tasks)} tasks: "
            f"{escape(', '.join(tasks))}. It was merged by hf-zipit, without training. Every task answers among its "
            "own classes, whatever the image shows.</p>",
            elem_classes="zipit",
            padding=False,
        )
        image = gr.Image(
            type="pil",
            sources=["upload", "webcam", "clipboard"],
            label="Image",
            height=300,
            buttons=[],
            elem_id="zipit-image",
        )
        shown = gr.HTML("", elem_classes="zipit", elem_id="zipit-answers", padding=False)
        image.change(answer, image, shown, api_name="answer", show_progress="minimal")
    return blocks
