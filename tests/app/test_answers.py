"""What a merge says of one image, for tasks of every kind, and how the page shows it."""

from pathlib import Path

import PIL.Image
import pytest
import torch
import transformers

import hf_zipit
from hf_zipit.app import answers as module
from hf_zipit.app import texts
from hf_zipit.app.answers import Answer, Answers, answers
from hf_zipit.app.job import moved
from hf_zipit.app.work import Look, Outcome, Way
from hf_zipit.recipe import Recipe
from hf_zipit.sources.preprocessing import preprocessing_of
from tests.helpers.detectors import save_detector
from tests.helpers.wholes import segformer


@pytest.fixture
def image():
    values = torch.randint(0, 255, (40, 52, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return PIL.Image.fromarray(values.numpy())


def test_classifiers_answer_each_for_themselves_and_together(digits, image):
    merged = hf_zipit.merge(digits, method="average", calibrate="none")
    found = answers(merged, image)
    _, transform = preprocessing_of(merged)
    output = merged(pixel_values=transform(image)[None])
    for one, (task, logits) in zip(found.tasks, output.task_logits.items(), strict=True):
        assert one.task == task
        names = next(head["id2label"] for head in merged.config.heads if head["task"] == task)
        best = names.get(int(logits.argmax())) or names.get(str(int(logits.argmax())))
        assert next(iter(one.scores)) == best
        assert sum(one.scores.values()) == pytest.approx(1)
        assert list(one.scores.values()) == sorted(one.scores.values(), reverse=True)
    both = [f"digits-0-4: {name}" for name in "01234"] + [f"digits-5-9: {name}" for name in "56789"]
    assert found.joint == both[int(output.logits.argmax())]


@pytest.mark.parametrize(
    ("problem", "logits", "scores"),
    [
        ("binary", [2.0], {"dog": 0.881, "no": 0.119}),
        ("multi-label", [0.0, 2.0], {"cat": 0.881, "dog": 0.5}),
        ("regression", [-3.0, 7.5], {"cat": 7.5, "dog": -3.0}),
        (None, [0.0, 0.0], {"dog": 0.5, "cat": 0.5}),
    ],
)
def test_logits_are_read_as_what_they_mean(problem, logits, scores):
    names = {"0": "dog"} if problem == "binary" else {"1": "cat", "0": "dog"}
    found = module._classified({"task": "pets", "id2label": names, "problem": problem}, torch.tensor(logits))
    assert found.scores == pytest.approx(scores, abs=1e-3)


def test_masks_are_painted_and_maps_are_grey(image):
    masks = torch.zeros(3, 10, 13)
    masks[2, :, 7:] = 1
    painted = module._painted(masks, ["a", "b", "c"], image.resize((260, 200)))
    assert painted.size == (260, 200)
    left, right = painted.getpixel((20, 190)), painted.getpixel((250, 190))
    assert left != right
    one = module._painted(masks[2:] - 0.5, ["c"], image)  # one class, which a pixel shows or not
    assert one.size == image.size
    grey = module._map(torch.linspace(2, 5, 130).view(1, 10, 13), image)
    assert grey.getpixel((0, 0)) == 0
    assert grey.getpixel((51, 39)) == 255


@pytest.mark.parametrize("which", ["segments", "boxes"])
def test_tasks_of_other_kinds_answer_with_pictures(tmp_path, image, which):
    torch.manual_seed(0)
    if which == "segments":
        kinds = {"a": "ImageClassification", "b": "SemanticSegmentation"}
        for name, kind in kinds.items():
            segformer(getattr(transformers, f"SegformerFor{kind}"), 3).save_pretrained(tmp_path / name)
            transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / name)
    else:
        for name, seed in (("a", 0), ("b", 1)):
            save_detector(tmp_path, name, seed)
    merged = hf_zipit.merge([tmp_path / "a", tmp_path / "b"], method="average", calibrate="none")
    found = answers(merged, image)
    assert found.joint is None
    assert found.tasks[1].picture.size == image.size
    assert bool(found.tasks[0].scores) == (which == "segments")
    assert "data:image/png" in texts.answers(found)


def test_pages_escape_what_models_and_messages_say():
    bad = "<script>alert(1)</script>"
    found = Answers((Answer(bad, {bad: 0.5}), Answer("b", {bad: 12.0}), Answer("c")), bad)
    look = Look(Recipe(), (Way(bad, 1.0),), relation=bad, text=f"{bad}  x", advice=(bad,), control=(bad, 0.5))
    made = Outcome(Path(bad), f"- {bad}\n{bad}", summary=bad, table=f"{bad}  1", worth_it=False)
    pages = [
        texts.answers(found),
        texts.expectation(look),
        texts.expectation(Look(Recipe(), (), unknown=bad)),
        texts.way_line(Way(bad, 1.0, kept=0.5), look),
        texts.way_line(Way(bad, 1.0), look),
        texts.result(made),
        texts.note(bad),
        texts.warnings([bad]),
        texts.running(bad, moved((), bad, 1, 2), 0.0),
    ]
    for one in pages:
        assert "<script" not in one
        assert "&lt;script" in one


def test_the_words_of_a_text_are_explained_and_no_others():
    shown = texts.details("Verdict", "held out  agrees %", texts.TERMS)
    assert "<dt>agrees</dt>" in shown
    assert "<dt>chance</dt>" not in shown
    assert texts.details("x", "trunk of a %", texts.TERMS).count("<dt>") == 1


def test_progress_shows_the_outer_stage_and_the_time_left():
    stages = moved(moved((), "Trying", 0, 4), "Trying", 1, 4)
    shown = texts.running("Diagnosis", moved(stages, "Matching", 0, 9), 0.0)
    assert "Trying 1/4" in shown
    assert "Matching 0/9" in shown
    assert "width:25%" in shown
    assert "about 0:00 more" in shown
    assert "starting" in texts.running("Diagnosis", (), 0.0)
    assert "unknown" in texts.running("Diagnosis", (), 0.0)
