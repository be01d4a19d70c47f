"""The parts of the page, without what they do."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from hf_zipit.app.places import Places
from hf_zipit.calibration.methods import CALIBRATIONS
from hf_zipit.matching.registry import AUTO, names

HALF = 320  # pixels of one of two columns, below which they stand one below the other


@dataclass
class Panels:
    """The parts of the page that events read or change."""

    models: gr.Dropdown
    data: gr.Dropdown
    tasks: gr.Textbox
    method: gr.Dropdown
    calibrate: gr.Dropdown
    number: gr.Number
    labelled: gr.Dropdown
    diagnose: gr.Button
    expectation: gr.HTML
    way: gr.Slider
    way_line: gr.HTML
    name: gr.Textbox
    merge: gr.Button
    made: gr.Column
    result: gr.HTML
    image: gr.Image
    samples: gr.Gallery
    answers: gr.HTML
    zip: gr.Button
    file: gr.File
    repo: gr.Textbox
    token: gr.Textbox
    private: gr.Checkbox
    push: gr.Button
    status: gr.HTML
    cancel: gr.Button


def build(places: Places) -> Panels:
    """All parts, from top to bottom.

    Args:
        places: the folders that may be read and written.
    """
    _head(
        "<h1>hf-zipit</h1><p>Merge vision models of one architecture into one model with a head per task, without "
        f"training. Reads and writes in <code>{escape(str(places.folder))}</code>.</p>"
    )
    parts = {**_inputs(places), **_expected(), **_merge(places), **_made(), **_bar()}
    return Panels(**parts)


def _head(text: str) -> gr.HTML:
    return gr.HTML(text, elem_classes="zipit", padding=False)


def _text(name: str = "") -> gr.HTML:
    """A place for text that events fill."""
    return gr.HTML("", elem_classes="zipit", elem_id=name or None, padding=False)


def _inputs(places: Places) -> dict[str, Any]:
    """Models, images and options."""
    _head("<h2>1. Models and images</h2>")
    many: dict[str, Any] = {"multiselect": True, "allow_custom_value": True, "min_width": HALF}
    parts: dict[str, Any] = {}
    with gr.Row():
        parts["models"] = gr.Dropdown(
            places.models(),
            label="Models, two or more",
            info="Folders in the working folder, or Hub ids such as user/pets. Enter adds one.",
            elem_id="zipit-models",
            **many,
        )
        parts["data"] = gr.Dropdown(
            places.image_sets(),
            label="Images",
            info="A folder, parquet files or a Hub id. One for all models, or one for each in their order. No labels "
            "needed.",
            elem_id="zipit-data",
            **many,
        )
    with gr.Accordion("Options", open=False):
        with gr.Row():
            parts["tasks"] = gr.Textbox(
                label="Names of the tasks", info="Separated by commas. Empty: the names of the models."
            )
            parts["number"] = gr.Number(
                label="Images per data set", info="Empty: as many as are useful.", precision=0, minimum=0, value=None
            )
        with gr.Row():
            parts["method"] = gr.Dropdown(
                [AUTO, *names()], value=AUTO, label="Method", info="How layers are merged. auto chooses, and says why."
            )
            parts["calibrate"] = gr.Dropdown(
                [AUTO, *CALIBRATIONS],
                value=AUTO,
                label="Calibration",
                info="How the merge is fitted to the models afterwards.",
            )
        parts["labelled"] = gr.Dropdown(
            places.image_sets(),
            label="Images with labels",
            info="To measure accuracy beside the models. Optional; nothing is fitted to these labels.",
            elem_id="zipit-labelled",
            **many,
        )
    return parts


def _expected() -> dict[str, Any]:
    """What to expect, filled by a diagnosis."""
    _head(
        "<h2>2. What to expect</h2><p>Makes trial merges on few images and judges them on others, to forecast what "
        "each way to merge keeps and costs. Takes a few minutes and writes nothing. You can leave it out.</p>"
    )
    button = gr.Button("Diagnose", variant="secondary", elem_id="zipit-diagnose")
    return {"diagnose": button, "expectation": _text("zipit-expectation")}


def _merge(places: Places) -> dict[str, Any]:
    """How much to share, and the button."""
    _head("<h2>3. Merge</h2>")
    way = gr.Slider(
        0,
        1,
        value=0,
        step=1,
        label="How much the tasks share",
        info="Left: all layers, the cheapest. Further right: fewer or wider ones, which cost more and may keep more.",
        visible=False,
        elem_id="zipit-way",
        buttons=[],
    )
    line = _text("zipit-way-line")
    name = gr.Textbox(places.free_name(), label="Name of the result", info="A new folder in the working folder.")
    button = gr.Button("Merge", variant="primary", elem_id="zipit-merge")
    return {"way": way, "way_line": line, "name": name, "merge": button}


def _made() -> dict[str, Any]:
    """The result, shown after a merge."""
    parts: dict[str, Any] = {}
    with gr.Column(visible=False) as column:
        _head("<h2>4. Result</h2>")
        parts["result"] = _text("zipit-result")
        _head(
            "<h2>5. Try it</h2><p>Give an image of yours, or click one of those that you merged with. Every task "
            "answers among its own classes, whatever the image shows.</p>"
        )
        with gr.Row():
            parts["image"] = gr.Image(
                type="pil",
                sources=["upload", "clipboard"],
                show_label=False,
                height=230,
                min_width=HALF,
                buttons=[],
                elem_id="zipit-image",
            )
            parts["samples"] = gr.Gallery(
                show_label=False,
                columns=4,
                height=230,
                min_width=HALF,
                allow_preview=False,
                object_fit="contain",
                buttons=[],
                interactive=False,
                elem_id="zipit-samples",
            )
        parts["answers"] = _text("zipit-answers")
        _head("<h2>6. Take it away</h2>")
        with gr.Row():
            with gr.Column(min_width=HALF):
                parts["zip"] = gr.Button("Make a zip file", elem_id="zipit-zip")
                parts["file"] = gr.File(label="Download", visible=False, interactive=False, elem_id="zipit-file")
            with gr.Column(min_width=HALF):
                parts |= _hub()
    return {"made": column, **parts}


def _hub() -> dict[str, Any]:
    """Where and how to upload."""
    repo = gr.Textbox(label="Hub repository", placeholder="user/merged", info="Created if needed.")
    token = gr.Textbox(
        label="Access token",
        type="password",
        info="With write permission. Empty: that of `hf auth login`. It is used once and not kept.",
        html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
        elem_id="zipit-token",
    )
    private = gr.Checkbox(value=True, label="Private, if the repository is new")
    return {
        "repo": repo,
        "token": token,
        "private": private,
        "push": gr.Button("Push to the Hub", elem_id="zipit-push"),
    }


def _bar() -> dict[str, Any]:
    """How far the work is, always in view, and the button that ends it."""
    with gr.Row(elem_id="zipit-bar"):
        return {
            "status": _text("zipit-status"),
            "cancel": gr.Button("Cancel", variant="stop", visible=False, elem_id="zipit-cancel"),
        }
