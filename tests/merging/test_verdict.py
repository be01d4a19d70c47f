"""The verdict on a merge: against a plain loop over the images, on merges whose quality is known, and at the edges."""

import copy
import json
import shutil

import pytest
import torch
from torch import nn

import hf_zipit
from hf_zipit.errors import OptionError, OutputError
from hf_zipit.evaluation.agreement import TEMPERATURES, compare_answers
from hf_zipit.merging import controls
from hf_zipit.merging.cards import common_base, stated_accuracies
from hf_zipit.merging.controls import one_trunk
from hf_zipit.merging.judge import judge
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.verdict import check_required, verdict_text
from hf_zipit.recipe import Recipe
from hf_zipit.running import logits_of
from hf_zipit.sources.load import load_source
from tests.helpers.models import hf_vit, images, shuffled, tiny

TASKS = ["a", "b"]


def merger_of(models, data, **options):
    return Merger(models, data, tasks=TASKS[: len(models)], cache=False, **options)


@torch.no_grad()
def plain_loop(models, parents, data_sets, temperature):
    """Image by image: agreement, and the parents' probabilities of the models' answers, by model and task."""
    counts = [0] * len(parents)
    same = {name: [0] * len(parents) for name in models}
    given = {name: [0.0] * len(parents) for name in models}
    sure = [0.0] * len(parents)
    for number, part in enumerate(data_sets):
        for pixels in part:
            logits = [logits_of(parent(pixels[None]))[0] for parent in parents]
            task = number
            if len(data_sets) == 1:
                task = max(range(len(parents)), key=lambda t: float(logits[t].softmax(0).max()))
            chances = (logits[task].double() / temperature).softmax(0)
            counts[task] += 1
            sure[task] += float(chances.max())
            for name, model in models.items():
                answer = int(list(model(pixels[None]).task_logits.values())[task][0].argmax())
                same[name][task] += answer == int(logits[task].argmax())
                given[name][task] += float(chances[answer])
    return counts, same, given, sure


@pytest.mark.parametrize("sets", [1, 2])
def test_the_sums_are_those_of_a_plain_loop(sets):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    data = [images(100, seed=seed) for seed in range(sets)]
    merger = merger_of(models, data if sets == 2 else data[0])
    made = {"one": merger.merge(method="zip", calibrate="batchnorm"), "two": merger.merge(method="average")}
    found = compare_answers(made, merger.parents.wholes, merger.held_out)
    held = [[part[i] for i in range(len(part))] for part in merger.held_out.images]
    for place in (TEMPERATURES.index(1.0), 20):
        counts, same, given, sure = plain_loop(made, models, held, TEMPERATURES[place])
        assert found.images.tolist() == counts
        assert sum(counts) == 20 * sets
        assert found.sure[:, place].tolist() == pytest.approx(sure, rel=1e-4)
        for name in made:
            assert found.same[name].tolist() == same[name]
            assert found.given[name][:, place].tolist() == pytest.approx(given[name], rel=1e-4)


def test_a_merge_that_answers_as_its_parents_keeps_all():
    model = hf_vit(0)
    merged = hf_zipit.merge([model, shuffled(model)], images(300), tasks=TASKS, method="permute", calibrate="none")
    verdict = merged.config.zipit["verdict"]
    known = [one for one in verdict["tasks"].values() if one["images"]]
    assert [one["agreement"] for one in known] == [1.0] * len(known)
    assert verdict["kept"] == 1
    assert not verdict["worth_it"]  # one trunk does as well
    (advice,) = (sentence for sentence in verdict["advice"] if "no better than the trunk of" in sentence)
    assert f"it keeps {100 * verdict['kept']:.1f} %, that trunk {100 * verdict['control_kept']:.1f} %" in advice
    assert "Simpler and as good: --method " in advice


@torch.no_grad()
def test_the_control_keeps_one_trunk_and_fits_the_other_heads(monkeypatch):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merger = merger_of(models, images(400))
    for parent in (0, 1):
        made = one_trunk(merger, parent)
        for name, value in made.trunk.state_dict().items():
            assert torch.equal(value, models[parent].state_dict()[name])
        pixels = torch.stack([merger.held_out.images[0][i] for i in range(80)])
        logits = list(made(pixel_values=pixels).task_logits.values())
        own = models[parent](pixels)
        assert (logits[parent].argmax(1) == own.argmax(1)).float().mean() > 0.95
        wanted = models[1 - parent](pixels)

        def error(model, number=1 - parent, wanted=wanted, pixels=pixels):
            gap = list(model(pixel_values=pixels).task_logits.values())[number] - wanted
            return float((gap - gap.mean(1, keepdim=True)).square().sum())  # softmax ignores the mean

        with monkeypatch.context() as patch:
            patch.setattr(controls, "refit_heads", lambda state: None)
            assert error(made) < 0.5 * error(one_trunk(merger, parent))


def test_expected_accuracy_uses_what_is_stated():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merger = merger_of(models, [images(200), images(200, seed=1)])
    merged = merger.merge(method="average", calibrate="batchnorm")
    without = judge(merger, merged, Recipe(method="average"))
    assert all(one.expected is None for one in without.tasks.values())
    verdict = judge(merger, merged, Recipe(method="average", parent_accuracy=[0.8, 0.6]))
    found = compare_answers({"m": merged}, merger.parents.wholes, merger.held_out)
    for t, (one, accuracy) in enumerate(zip(verdict.tasks.values(), (0.8, 0.6), strict=True)):
        level = found.sure[t] / found.images[t]
        place = int((level - accuracy).abs().argmin())
        expected = accuracy * float(found.given["m"][t, place] / found.sure[t, place])
        assert one.expected == pytest.approx(expected, abs=1e-4)
        assert one.expected <= accuracy
    with pytest.raises(OptionError, match="parent_accuracy has 1 numbers, but there are 2 tasks"):
        judge(merger, merged, Recipe(parent_accuracy=[0.8]))


def test_accuracies_and_the_base_are_read_from_the_cards_of_the_parents(digits, tmp_path):
    sources = [load_source(folder) for folder in digits]
    assert stated_accuracies(sources) == [None, None]
    folder = tmp_path / "stated"
    shutil.copytree(digits[0], folder)
    card = """---
base_model: user/base
model-index:
- name: x
  results:
  - task: {type: image-classification}
    dataset: {name: d, type: d}
    metrics: [{type: accuracy, value: 91.5}, {type: f1, value: 0.9}]
---
"""
    (folder / "README.md").write_text(card)
    stated = load_source(folder)
    assert stated_accuracies([stated]) == [pytest.approx(0.915)]
    assert common_base([stated, stated]) == "user/base"
    assert common_base([stated, sources[0]]) is None
    assert common_base(sources) is None
    (folder / "README.md").write_text(card.replace("user/base", "[user/one, user/other]"))
    assert common_base([stated]) is None


def test_too_few_images_give_no_verdict_and_say_so(caplog):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(99), tasks=TASKS, method="average", calibrate="none")
    assert "verdict" not in merged.config.zipit
    caplog.clear()
    merged = hf_zipit.merge(models, images(99), tasks=TASKS, cache=False)
    assert "there is no verdict: it takes 100 images" in caplog.text
    caplog.clear()
    hf_zipit.merge(models, images(99), tasks=TASKS, cache=False, verdict=False)
    assert "no verdict" not in caplog.text


def test_a_task_that_no_image_is_of_is_unknown():
    sure, unsure = tiny("cifar_resnet20", 0), tiny("cifar_resnet20", 1)
    with torch.no_grad():
        for parameter in unsure.get_classifier().parameters():
            parameter.mul_(1e-4)
    merged = hf_zipit.merge([sure, unsure], images(100), tasks=TASKS, cache=False, method="zip", calibrate="batchnorm")
    verdict = merged.config.zipit["verdict"]
    assert verdict["tasks"]["b"]["images"] == 0
    assert verdict["tasks"]["b"]["agreement"] is None
    assert any("nothing is known of b" in sentence for sentence in verdict["advice"])
    json.dumps(verdict, allow_nan=False)
    with pytest.raises(OutputError, match="b unknown"):
        check_required(verdict, 0.1)


def test_what_is_required_is_held_against_every_task():
    verdict = {"tasks": {"a": {"agreement": 0.95, "images": 50}, "b": {"agreement": 0.85, "images": 50}}}
    check_required(verdict, 0.85)
    with pytest.raises(OutputError, match=r"0\.9 agreement with the parents is required, found: b 0\.850"):
        check_required(verdict, 0.9)
    with pytest.raises(OutputError, match="no images are held out"):
        check_required(None, 0.5)


def test_merges_of_merges_and_several_parents_are_judged():
    models = [tiny("cifar_resnet20", seed) for seed in range(3)]
    three = hf_zipit.merge(models, images(100), tasks=["a", "b", "c"], cache=False, method="zip", calibrate="batchnorm")
    assert set(three.config.zipit["verdict"]["tasks"]) == {"a", "b", "c"}
    again = hf_zipit.merge(
        [three, models[0]],
        images(100),
        tasks=["a", "b", "c", "d"],
        cache=False,
        method="average",
        calibrate="batchnorm",
    )
    verdict = again.config.zipit["verdict"]
    assert set(verdict["tasks"]) == {"a", "b", "c", "d"}
    assert sum(one["images"] for one in verdict["tasks"].values()) == verdict["images"] == 20


def test_outputs_that_are_no_classes_are_judged_by_their_own_measure():
    models = [hf_vit(seed, problem_type="regression", num_labels=2) for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(100), tasks=TASKS, cache=False)
    verdict = merged.config.zipit["verdict"]
    assert verdict["joint"] is None
    for one in verdict["tasks"].values():
        assert one["chance"] is None
        assert 0 <= one["agreement"] <= 1
        assert one["images"] == 20
    assert "chance" not in verdict_text(verdict)


def test_images_without_finite_outputs_count_for_no_task(monkeypatch):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merger = merger_of(models, images(100))
    merged = merger.merge(method="average", calibrate="none")
    held = merger.held_out.images[0]
    spoilt = {**{i: held[i] for i in range(len(held))}, 3: torch.full_like(held[3], torch.inf)}
    monkeypatch.setattr(held, "get", spoilt.__getitem__)
    verdict = judge(merger, merged, Recipe(method="average"))
    assert sum(one.images for one in verdict.tasks.values()) == 19
    assert any("1 held-out images are left out" in sentence for sentence in verdict.advice)
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_many_tasks_on_few_images_give_numbers():
    models = [tiny("cifar_resnet20", seed) for seed in range(4)]
    merged = hf_zipit.merge(models, images(100), tasks=[*"abcd"], cache=False, method="average", calibrate="none")
    json.dumps(merged.config.zipit["verdict"], allow_nan=False)
    assert 0 <= merged.config.zipit["verdict"]["kept"] <= 1


def test_images_are_held_out_of_all_data_sets_or_of_none():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merger = merger_of(models, [images(100), images(99, seed=1)])
    assert merger.held_out is None
    assert list(map(len, merger.passes.images)) == [100, 99]


def test_the_text_names_what_it_shows():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(100), tasks=TASKS, cache=False, parent_accuracy=[0.9, 0.8])
    text = verdict_text(merged.config.zipit["verdict"])
    head = text.splitlines()[0]
    for word in ("held out", "agrees %", "trunk of ", "chance %", "keeps %", "accuracy %"):
        assert word in head
    assert "The merge should keep" in text


def test_the_parents_are_left_as_they_were():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    hf_zipit.merge(models, images(100), tasks=TASKS, cache=False, method="average", calibrate="none")
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Module))


def test_a_merge_from_a_handful_of_images_says_that_it_is_likely_to_be_bad(caplog):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    hf_zipit.merge(models, images(10), tasks=TASKS, method="zip", calibrate="none", cache=False)
    assert "likely to be bad" not in caplog.text
    hf_zipit.merge(models, images(9), tasks=TASKS, method="zip", calibrate="none", cache=False)
    assert "9 images say little about the models, so the merge is likely to be bad: give a few hundred" in caplog.text
