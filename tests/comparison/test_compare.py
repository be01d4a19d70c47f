"""Comparisons of tiny models; every measured value equals a plain computation."""

import csv
import json
from dataclasses import replace

import datasets
import PIL.Image
import pytest
import torch

import hf_zipit
from hf_zipit.calibration import batchnorm
from hf_zipit.calibration.refit import joint
from hf_zipit.calibration.refit import refit as sweep
from hf_zipit.comparison.grid import Grid
from hf_zipit.comparison.report import comparison_table, plain, write_report
from hf_zipit.comparison.run import ROWS, Comparison
from hf_zipit.data.batches import Passes, remembered
from hf_zipit.data.images import Images, open_all, open_images
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.fidelity import distance, feature_correlation
from hf_zipit.matching import matcher
from hf_zipit.matching.methods import METHODS
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.sources.load import load_source
from tests.helpers.models import images, shuffled, tiny

TASKS = ["a", "b"]


def merger(models=None, data=None, **options):
    return Merger(
        models or [tiny("cifar_resnet20", seed) for seed in (0, 1)], data or images(32), tasks=TASKS, **options
    )


def labelled(count=20):
    return [(torch.cat(images(count, seed=3)), torch.arange(count) % 5)]


def wanted(merger, methods=("permute", "average"), cuts=("layer1", None), calibrations=("none",), **options):
    return Grid(methods, cuts, calibrations, options=options).recipes(merger)


def test_every_method_cut_and_calibration():
    mine = merger(cache=False)
    found = wanted(mine, ["all"], ["layer1", None, None], ["none", "repair"])
    assert len(found) == len(METHODS) * 2 * 2
    assert {recipe.method for recipe in found} == set(METHODS)
    with pytest.raises(OptionError, match="unknown cut 'layer9'"):
        wanted(mine, cuts=["layer9"])
    with pytest.raises(OptionError, match="unknown calibration 'hope'"):
        wanted(mine, calibrations=["hope"])
    with pytest.raises(OptionError, match="unknown method 'magic'"):
        wanted(mine, ["magic"])


def test_rows_are_those_of_single_merges_and_evaluations(tmp_path):
    mine = merger(cache=False)
    rows = Comparison(mine, tmp_path, labelled()).run(wanted(mine, calibrations=["batchnorm"]))
    assert [(row.model, row.settings.get("cut")) for row in rows] == [
        *(("permute", "layer1"), ("permute", None), ("average", "layer1"), ("average", None)),
        *(("parent:a", None), ("parent:b", None), ("ensemble", None)),
    ]
    merged = hf_zipit.merge(
        mine.parents.sources,
        images(32),
        method="permute",
        calibrate="batchnorm",
        cut="layer1",
        tasks=TASKS,
        cache=False,
    )
    alone = {row.model: row.to_dict() for row in hf_zipit.evaluate(merged, labelled(), parents=mine.parents.sources)}
    for row, name in ((rows[0], "merged"), (rows[5], "parent:b"), (rows[6], "ensemble")):
        mine = plain(row)
        assert {key: mine[key] for key in alone[name] if key != "model"} == {
            key: value for key, value in alone[name].items() if key != "model"
        }


@pytest.mark.slow
def test_other_labelled_images_under_the_same_name_choose_the_balance_anew(tmp_path):
    """A row that an earlier content of the file decided is not reported for a later one."""
    file = tmp_path / "labelled.parquet"
    made = []

    def write(first):
        pictures = [PIL.Image.new("RGB", (32, 32), (20 * i, 0, 0)) for i in range(10)]
        rows = {"image": pictures, "label": [(first + i) % 5 for i in range(10)]}
        datasets.Dataset.from_dict(rows).to_parquet(str(file))

    def compare():
        mine = merger(cache=False)
        recipe = mine.recipe.changed(method="mudsc-align", balance="auto", balance_data=[str(file)], cut="layer1")
        Comparison(mine, tmp_path / "report", labelled(), save=lambda recipe, _: made.append(recipe)).run([recipe])

    write(first=0)
    compare()
    compare()
    assert len(made) == 1
    write(first=1)
    compare()
    assert len(made) == 2


def test_one_pass_for_statistics_and_each_image_decoded_once(tmp_path, monkeypatch):
    begun = []
    plain = Passes.__call__
    monkeypatch.setattr(Passes, "__call__", lambda self, label: begun.append(label) or plain(self, label))
    read = []

    def counted(*arguments, **options):
        [part] = open_all(*arguments, **options)
        merges = "held_out" in options  # else they are the labelled ones
        return [replace(part, get=lambda i: read.append(i) or part.get(i)) if merges else part]

    monkeypatch.setattr("hf_zipit.merging.merger.open_all", counted)
    mine = merger(cache=False)
    Comparison(mine, tmp_path, labelled()).run(wanted(mine))
    assert begun.count("Reading activations") == 1
    assert sorted(read) == [0, *range(32)]  # the first one also tells the size


@pytest.mark.slow
def test_a_comparison_that_was_cut_short_goes_on(tmp_path, monkeypatch):
    mine = merger()
    whole = Comparison(mine, tmp_path / "whole", labelled()).run(wanted(mine))
    made = []
    merge = Merger.merge

    def interrupted(self, recipe):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((recipe.method, recipe.cut))
        return merge(self, recipe)

    monkeypatch.setattr(Merger, "merge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Comparison(merger(), tmp_path / "cut", labelled()).run(wanted(mine))
    file = tmp_path / "cut" / ROWS
    assert len(file.read_text().splitlines()) == 3 + 2  # the parents and their ensemble come first
    with file.open("a") as out:
        out.write('{"key": "half a li')  # as a kill in the middle of a line leaves it

    made.clear()
    monkeypatch.setattr(Merger, "merge", lambda self, r: made.append((r.method, r.cut)) or merge(self, r))
    found = Comparison(merger(), tmp_path / "cut", labelled()).run(wanted(mine))
    assert made == [("average", "layer1"), ("average", None)]
    for row, expected in zip(found, whole, strict=True):
        assert replace(row, seconds=None) == replace(expected, seconds=None)
    made.clear()
    assert Comparison(merger(), tmp_path / "cut", labelled()).run(wanted(mine)) == found
    assert made == []


def test_what_decides_a_row_is_part_of_its_key(tmp_path):
    first = Comparison(merger(), tmp_path, labelled())
    (trial,) = wanted(first.merger, ["zip"], [None])
    (other,) = wanted(first.merger, ["zip"], [None], alpha=0.5)
    keys = {first._key(trial.decisions), first._key(other.decisions)}
    changed = [
        merger(data=images(32, seed=1)),
        merger([tiny("cifar_resnet20", s) for s in (0, 2)]),
        merger(batch_size=8),
    ]
    keys |= {Comparison(mine, tmp_path, labelled())._key(trial.decisions) for mine in changed}
    keys |= {Comparison(merger(), tmp_path, labelled(19))._key(trial.decisions)}
    assert len(keys) == 6
    assert first._key(trial.decisions) == Comparison(merger(), tmp_path, labelled())._key(trial.decisions)


def test_without_labels_outputs_are_compared_with_the_parents(tmp_path):
    model = tiny("cifar_resnet20")
    mine = merger([model, shuffled(model)])
    same, lost, *parents = Comparison(mine, tmp_path, images(16, seed=4)).run(wanted(mine, cuts=[None]))
    assert same.tasks == {"a": 1.0, "b": 1.0}
    assert same.distance < 1e-8
    assert min(same.correlation.values()) == pytest.approx(1, abs=1e-5)
    assert lost.distance > 0.1
    assert max(lost.correlation.values()) < 0.95
    assert [row.model for row in parents] == ["parent:a", "parent:b", "ensemble"]
    assert "distance" in comparison_table([same, lost, *parents], TASKS).splitlines()[0]


def test_a_merge_that_cannot_be_made_leaves_the_others(tmp_path, monkeypatch, caplog):
    merge = Merger.merge

    def failing(self, recipe):
        if recipe.method == "permute":
            raise OptionError("permute cannot")
        return merge(self, recipe)

    monkeypatch.setattr(Merger, "merge", failing)
    mine = merger()
    rows = Comparison(mine, tmp_path, labelled()).run(wanted(mine, cuts=[None]))
    assert [row.model for row in rows] == ["permute", "average", "parent:a", "parent:b", "ensemble"]
    assert [row.error for row in rows] == ["permute cannot", *[None] * 4]
    assert "permute, cut none: permute cannot" in caplog.text
    text = comparison_table(rows, TASKS)
    assert text.splitlines()[-1] == "failed: permute, cut none, calibrate none: permute cannot"
    assert [line.split()[0] for line in text.splitlines()[1:5]] == [row.model for row in rows[1:]]
    write_report(rows, TASKS, tmp_path)
    first, second = json.loads((tmp_path / "results.json").read_text())[:2]
    assert first["error"] == "permute cannot"
    assert "flops" not in first
    assert "error" not in second
    with (tmp_path / "results.csv").open() as file:
        assert [line["error"] for line in csv.DictReader(file)] == ["permute cannot", *[""] * 4]
    monkeypatch.undo()
    again = Comparison(merger(), tmp_path, labelled()).run(wanted(mine, cuts=[None]))
    assert again[0].error is None  # it was tried again


def test_a_report_is_only_written_where_nothing_else_is(tmp_path):
    mine = merger(cache=False)
    for names in (["config.json"], ["config.json", ROWS], ["notes.txt"]):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        with pytest.raises(OptionError, match="holds no earlier report, but"):
            Comparison(mine, folder, labelled())
    (folder / ROWS).touch()  # notes beside a report
    Comparison(mine, folder, labelled())


def test_a_grid_is_checked_without_models():
    Grid(["zip"], ["none", None], ["refit"], [0.5, 2], [1.5]).check()
    wrong = {
        "unknown method 'magic'": {"methods": ["zip", "magic"]},
        "unknown calibration 'hope'": {"calibrations": ["hope"]},
        "width is nan": {"widths": [float("nan")]},
        "flops_budget is inf": {"flops_budgets": [float("inf")]},
        "no cuts to compare": {"cuts": []},
        "no methods to compare": {"methods": []},
        "alpha is 3": {"options": {"alpha": 3}},
    }
    for message, values in wrong.items():
        with pytest.raises(OptionError, match=message):
            Grid(**values).check()


def test_no_cut_has_a_name():
    mine = merger(cache=False)
    assert [recipe.cut for recipe in wanted(mine, ["zip"], ["none", "layer1"])] == [None, "layer1"]
    assert Recipe(cut="none").cut is None


def test_distance_is_a_plain_computation():
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    data = [torch.cat(images(12, seed=1)), torch.cat(images(9, seed=2))]
    merged = hf_zipit.merge(models, images(32), tasks=TASKS, cache=False)
    passes = Passes([open_images([pixels], None) for pixels in data], 4)
    found = distance(merged, [load_source(model) for model in models], passes)
    with torch.no_grad():
        for k, (task, pixels, model) in enumerate(zip(TASKS, data, models, strict=True)):
            own, mine = model(pixels), merged(pixels).task_logits[task]
            assert found[task].agreement == pytest.approx((own.argmax(1) == mine.argmax(1)).double().mean().item()), k
            error = (own - mine).square().sum() / (own - own.mean(0)).square().sum()
            assert found[task].error == pytest.approx(error.item(), rel=1e-4)


def test_correlation_of_features_is_a_plain_computation():
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    mine = Merger(models, images(48), tasks=TASKS, cache=False)
    merged = mine.merge(method="zip", cut="layer2", calibrate="none")
    recipe = Recipe(method="zip", cut="layer2")
    matches = mine.match(mine.plan(recipe), recipe)
    found = feature_correlation(merged, mine.parents.sources, mine.parents.binding, matches, mine.passes)
    name = "layer1.1.mid1"
    assert name in found

    def features(model):
        kept = []
        handle = model.layer1[1].conv2.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        with torch.no_grad():
            for pixels in images(48):
                model(pixels) if model is not merged.trunk else merged(pixels)
        handle.remove()
        return torch.cat(kept).movedim(1, -1).flatten(0, -2)

    y, values = features(merged.trunk), []
    for k, model in enumerate(models):
        x = features(model)
        for unit, label in enumerate(matches[name].of(k).tolist()):
            if x[:, unit].std() > 1e-6:
                values.append(torch.corrcoef(torch.stack([x[:, unit], y[:, label]]))[0, 1].nan_to_num())
    assert found[name] == pytest.approx(torch.stack(values).mean().item(), abs=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in merged.modules())


def test_features_are_compared_at_every_cut():
    """After the last block only the pooling follows, which has no weights and is held by the trunk, but not run."""
    mine = merger(cache=False)
    for cut in mine.parents.binding.cuts:
        recipe = Recipe(method="permute", cut=cut, calibrate="none")
        merged = mine.merge(recipe)
        matches = mine.match(mine.plan(recipe), recipe)
        found = feature_correlation(merged, mine.parents.sources, mine.parents.binding, matches, mine.passes)
        assert set(found) <= set(matches), cut
    assert list(found) == list(matches)


def test_images_that_do_not_fit_in_memory_are_decoded_anew():
    read = []
    source = Images(lambda i: read.append(i) or torch.zeros(3, 4, 4), 3, "x", lambda: "y")
    for limit, times in ((3 * 48 * 4, 1), (3 * 48 * 4 - 1, 2)):
        [part] = remembered([source], limit)
        read.clear()
        assert [part[i].shape for i in (0, 1, 2, 0, 1, 2)]
        assert len(read) == 3 * times


def test_the_report(tmp_path):
    mine = merger()
    rows = Comparison(mine, tmp_path, labelled()).run(wanted(mine))
    written = [path.name for path in write_report(rows, TASKS, tmp_path)]
    assert written == ["results.csv", "results.json", "results.md", "results.tex", "results.png"]
    assert json.loads((tmp_path / "results.json").read_text()) == [plain(row) for row in rows]
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["method"] for line in table] == [row.model for row in rows]
    assert table[1]["cut"] == "none"
    assert float(table[0]["joint"]) == rows[0].joint
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_ensemble_is_calibrated_for_the_joint_prediction_as_the_merges_are(tmp_path):
    mine = merger(data=[images(24, seed=seed) for seed in (1, 2)], cache=False)
    chosen = wanted(mine, ["permute"], [None], ["none", "refit-joint"])
    plainly, *rows = Comparison(mine, tmp_path, labelled()).run(chosen)
    assert [row.model for row in rows] == ["permute", "parent:a", "parent:b", "ensemble", "ensemble"]
    ensemble, fitted = rows[-2:]
    assert [row.settings for row in rows[-2:]] == [{}, {"calibrate": "refit-joint"}]
    assert (fitted.flops, fitted.parameters) == (ensemble.flops, ensemble.parameters)
    pixels, labels = labelled()[0]
    nets = joint.refit_ensemble(mine.parents.sources, mine.parents.binding, mine.passes, 0)
    with torch.no_grad():
        own = [(net(pixels).argmax(1) == labels).double().mean().item() for net in nets]
        both = torch.cat([net(pixels).log_softmax(1) for net in nets], 1).argmax(1)
    assert list(fitted.tasks.values()) == own
    assert fitted.joint == sum((both == labels + 5 * k).double().mean().item() for k in (0, 1)) / 2
    assert comparison_table([plainly, *rows], TASKS).splitlines()[-1].split()[:3] == ["ensemble", "-", "refit-joint"]
    assert [plain(row)["calibrate"] for row in rows[-2:]] == [None, "refit-joint"]
    write_report([plainly, *rows], TASKS, tmp_path)
    assert Comparison(mine, tmp_path, labelled()).run(chosen) == [plainly, *rows]
    assert Comparison(mine, tmp_path, labelled()).run(chosen[:1]) == [plainly, *rows[1:-1]]


def test_without_a_data_set_for_each_model_the_ensemble_stays_as_it_is(tmp_path):
    mine = merger([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(16), cache=False)
    rows = Comparison(mine, tmp_path, labelled()).run(wanted(mine, ["permute"], [None], ["refit-joint"]))
    assert [row.model for row in rows] == ["permute", "parent:a", "parent:b", "ensemble"]


SIZES = {"widths": [1, 1.5], "flops_budgets": [1.3, 1.6]}


def test_widths_and_budgets_are_further_merges(caplog):
    mine = merger(cache=False)
    chosen = Grid(["zip", "average"], calibrations=["batchnorm", "none"], **SIZES).recipes(mine)
    assert [(recipe.method, recipe.width, recipe.flops_budget) for recipe in chosen[::2]] == [
        *(("zip", 1, None), ("zip", 1.5, None), ("zip", 1, 1.3), ("zip", 1, 1.6)),
        ("average", 1, None),
    ]
    assert "these --methods run at width 1 only, without budgets: average" in caplog.text
    with pytest.raises(OptionError, match=r"width is 3: .* at most 2"):
        Grid(["zip"], widths=[3]).recipes(mine)


@pytest.mark.slow
def test_widths_and_budgets_are_further_rows_and_share_what_they_can(tmp_path, monkeypatch):
    counts = dict.fromkeys(("refits", "norms", "assignments"), 0)

    def counted(module, function, key):
        plain = getattr(module, function)

        def wrapped(*args, **kwargs):
            counts[key] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, function, wrapped)

    for module in (sweep, joint):
        counted(module, "refit", "refits")
    for module in (batchnorm, joint):
        counted(module, "renew_norms", "norms")
    counted(matcher.Matcher, "match", "assignments")
    mine = merger(cache=False)
    chosen = Grid(["zip", "average"], calibrations=["batchnorm", "refit", "refit-joint"], **SIZES).recipes(mine)
    rows = Comparison(mine, tmp_path, labelled()).run(chosen)
    assert counts["refits"] == 2 * 5  # the heads of refit-joint are another sweep, its refit is not
    assert counts["norms"] == 3 * 5
    families = len(mine.parents.binding.spaces)
    assert counts["assignments"] == 9 * families  # each ratio from 1 to 2 once, for both budgets and both widths
    one = next(row for row in rows if row.model == "parent:a").flops
    for row in rows:
        if row.settings.get("flops_budget"):
            assert row.flops <= row.settings["flops_budget"] * one
    alone = mine.merge(flops_budget=1.6, calibrate="none")
    assert [row.settings["cut"] for row in rows if row.settings.get("flops_budget") == 1.6] == [alone.config.cut] * 3
    again = Merger(mine.parents.sources, images(32), tasks=TASKS, cache=False).merge(chosen[5])
    shared = mine.merge(chosen[5])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in shared.state_dict().items())

    write_report(rows, TASKS, tmp_path)
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(line["width"], line["flops_budget"]) for line in table[3:7]] == [("1.5", "")] * 3 + [("1.0", "1.3")]
    lines = [line.split() for line in comparison_table(rows, TASKS).splitlines()]
    assert [line[2] for line in lines] == [
        "size",
        *["1"] * 3,
        *["1.5"] * 3,
        *["<=1.3x"] * 3,
        *["<=1.6x"] * 3,
        *["1"] * 3,
        *"---",
    ]


@pytest.mark.sample(1)
def test_the_command(run, digits, digits_data, tmp_path):
    options = ["--num-images", 64, "--eval-images", 100, "--methods", "zip,average", "--cuts", "layer2,none"]
    options += ["--widths", "1,1.2"]
    code, printed, _ = run("compare", *digits, "--data", digits_data, *options, "-o", tmp_path / "report")
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].split()[:4] == ["method", "cut", "size", "calibrate"]
    assert [line.split()[0] for line in lines[1:]] == [
        *["zip"] * 4,
        *["average"] * 2,
        "parent:digits-0-4",
        "parent:digits-5-9",
        "ensemble",
    ]
    code, printed, _ = run("compare", *digits, "--data", digits_data, *options, "-o", tmp_path / "report", "--json")
    assert json.loads(printed)["rows"] == json.loads((tmp_path / "report" / "results.json").read_text())
    (tmp_path / "file").write_text("mine")
    code, _, err = run("compare", *digits, "--data", digits_data, *options, "-o", tmp_path / "file")
    assert code == 2
    assert "is not a folder" in err
    code, _, err = run("compare", "gone", "gone", "--data", "gone", *options, "-o", tmp_path)
    assert code == 2
    assert "holds no earlier report, but file" in err


def test_if_every_merge_fails_so_does_the_command(run, digits, digits_data, tmp_path, monkeypatch):
    def failing(self, recipe):
        raise OptionError("it cannot")

    monkeypatch.setattr(Merger, "merge", failing)
    options = ["--num-images", 16, "--eval-images", 100, "--methods", "zip,average"]
    code, printed, err = run("compare", *digits, "--data", digits_data, *options, "-o", tmp_path / "report")
    assert code == 1
    assert err.splitlines()[-1] == "Error: none of the 2 merges could be made; the first: it cannot"
    assert printed.splitlines()[-1] == "failed: average, cut none, calibrate batchnorm: it cannot"
    assert len(json.loads((tmp_path / "report" / "results.json").read_text())) == 5


def test_labels_of_other_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="task 'a': no image has a label that belongs to the task"):
        Comparison(merger(), tmp_path, [(torch.zeros(2, 3, 32, 32), torch.tensor([8, 9]))])


@pytest.mark.slow
def test_controls_are_compared_by_all_with_every_calibration_and_marked(tmp_path):
    controls = [name for name, method in METHODS.items() if method.control]
    mine = merger(cache=False)
    every = wanted(mine, ["all"], [None], ["batchnorm", "refit-heads"])
    mine_only = [recipe for recipe in every if recipe.method in controls]
    rows = Comparison(mine, tmp_path, labelled()).run(mine_only)
    expected = [(name, calibrate) for name in controls for calibrate in ("batchnorm", "refit-heads")]
    assert [(row.model, row.settings["calibrate"]) for row in rows[: len(expected)]] == expected
    lines = comparison_table(rows, TASKS).splitlines()[1:]
    assert [line.split()[0] for line in lines[: len(expected)]] == [f"control:{name}" for name, _ in expected]
    assert comparison_table([replace(rows[0], model="zip")], TASKS).splitlines()[1].startswith("zip ")


def test_what_is_chosen_is_a_row_of_its_own(tmp_path):
    mine = merger(cache=False)
    grid = Grid(["auto", "select"], calibrations=["auto", "batchnorm"])
    rows = Comparison(mine, tmp_path, labelled()).run(grid.recipes(mine))[:4]
    assert [row.model for row in rows] == ["auto", "auto", "select", "select"]
    assert [row.settings["method"] for row in rows] == ["select"] * 4
    assert [row.settings["calibrate"] for row in rows] == ["refit-joint", "batchnorm"] * 2
    assert [row.tasks for row in rows[:2]] == [row.tasks for row in rows[2:]]
