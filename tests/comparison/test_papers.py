"""The rows of papers' tables."""

import pytest

from hf_zipit.calibration.presets import PRESETS
from hf_zipit.comparison.grid import Grid
from hf_zipit.comparison.papers import CONTROLS, PAPERS, PREFIX, Paper, rows_of
from hf_zipit.comparison.report import comparison_table
from hf_zipit.comparison.run import Comparison
from hf_zipit.errors import OptionError
from hf_zipit.matching.methods import METHODS
from hf_zipit.recipe import Recipe
from tests.comparison.test_compare import TASKS, labelled, merger

NAMES = [PREFIX + name for name in PAPERS]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_a_paper_is_a_recipe_of_a_method_that_we_have(name):
    rows = rows_of(name)
    assert [row["method"] for row in rows if row["method"] not in METHODS] == []
    for row in rows:
        assert Recipe(**row).method == row["method"]
    keys = [tuple(sorted(row.items())) for row in rows]
    assert len(set(keys)) == len(keys)
    calibrations = {row["calibrate"] for row in rows}
    assert [(row["method"], row["calibrate"]) for row in rows if row["method"] in CONTROLS] == [
        (control, calibration)
        for calibration in dict.fromkeys(row["calibrate"] for row in rows)
        for control in CONTROLS
    ]
    assert calibrations


def test_controls_are_all_that_there_are():
    assert sorted(CONTROLS) == sorted(name for name, method in METHODS.items() if method.control)


def test_the_settings_of_papers():
    by_method = {row["method"]: row for row in rows_of("zipit")}
    assert by_method["zip"] == {"method": "zip", "calibrate": "batchnorm", "alpha": 0.1, "beta": 0.8, "compat": True}
    assert {"method": "mudsc-zip", "calibrate": "batchnorm", "balance": "auto", "compat": True} in rows_of("mudsc")
    assert (
        PRESETS["pleas"].items()
        <= next(row for row in rows_of("pleas") if row["method"] == PRESETS["pleas"]["method"]).items()
    )


def test_an_unknown_method_in_a_paper_is_an_error(monkeypatch):
    monkeypatch.setitem(PAPERS, "wrong", Paper("nobody", ({"method": "magic", "calibrate": "none"},)))
    with pytest.raises(OptionError, match="unknown method 'magic'"):
        Grid(["paper:wrong"]).check()


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_of_a_paper_has_its_rows_at_every_cut(name):
    mine = merger(cache=False)
    found = Grid([name], cuts=["layer1", None]).recipes(mine)
    expected = [Recipe(**row, cut=cut) for row in rows_of(name) for cut in ("layer1", None)]
    shown = [(one.method, one.cut, one.calibrate, one.compat, one.balance, one.alpha) for one in found]
    assert shown == [(one.method, one.cut, one.calibrate, one.compat, one.balance, one.alpha) for one in expected]


def test_methods_beside_a_paper_have_the_other_calibrations_and_nothing_is_made_twice():
    mine = merger(cache=False)
    found = Grid(["paper:zipit", "select", "random"], calibrations=["batchnorm", "refit"]).recipes(mine)
    assert [(one.method, one.calibrate) for one in found] == [
        *((row["method"], "batchnorm") for row in rows_of("zipit")),
        *(("select", "batchnorm"), ("select", "refit"), ("random", "refit")),
    ]
    assert Grid(["paper:mudsc", "paper:mudsc"]).recipes(mine) == Grid(["paper:mudsc"]).recipes(mine)


def test_without_calibrations_the_plain_merge_is_calibrated_as_it_is_alone():
    found = Grid(["auto", "zip"]).recipes(merger(cache=False))
    assert [(one.method, one.calibrate) for one in found] == [("auto", "auto"), ("zip", "batchnorm")]


def test_a_row_with_a_width_of_its_own_has_no_other(monkeypatch):
    rows = [{"method": "zip", "calibrate": "none", **width} for width in ({"width": 1.5}, {"width": 1.0}, {})]
    monkeypatch.setitem(PAPERS, "wide", Paper("somebody", tuple(rows)))
    mine = merger(cache=False)
    found = Grid(["paper:wide"], widths=[1, 1.25], flops_budgets=[1.5]).recipes(mine)
    assert [(one.width, one.flops_budget) for one in found if one.method == "zip"] == [
        *((1.5, None), (1, None), (1.25, None), (1, 1.5)),  # the second row and the third have width 1 in common
    ]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (Grid(["paper:zip"]), "unknown paper 'zip'; papers: zipit, mudsc"),
        (Grid(["paper:zipit"], options={"alpha": 0.3}), "alpha is 0.3, but 0.1 for zip in paper:zipit: leave it out"),
        (Grid(["paper:zipit"], options={"compat": False}), "compat is False, but True for permute"),
        (Grid(["paper:zipit"], calibrations=["refit"]), "paper:zipit has its own calibrations: leave out --calibrate"),
    ],
)
def test_what_contradicts_a_paper_is_refused(grid, said):
    with pytest.raises(OptionError, match=said):
        grid.check()


def test_options_that_a_paper_leaves_open_can_be_given():
    mine = merger(cache=False)
    found = Grid(["paper:mudsc"], options={"alpha": 0.3}).recipes(mine)
    assert {one.alpha for one in found} == {0.3}


def test_the_table_of_a_paper_tells_its_rows_apart(tmp_path):
    mine = merger(cache=False)
    grid = Grid(["paper:zipit", "zip"], options={"compat": True})
    rows = Comparison(mine, tmp_path, labelled()).run(Grid(["paper:zipit", "zip"]).recipes(mine))
    lines = [line.split() for line in comparison_table(rows, TASKS).splitlines()]
    assert lines[0][:4] == ["method", "cut", "calibrate", "options"]
    assert [line[:4] for line in lines[1:]] == [
        *(["average", "none", "batchnorm", "-"], ["git-rebasin", "none", "batchnorm", "-"]),
        *(["permute", "none", "batchnorm", "compat"], ["zip", "none", "batchnorm", "compat"]),
        *([f"control:{name}", "none", "batchnorm", "-"] for name in CONTROLS),
        ["zip", "none", "batchnorm", "-"],
        *(["parent:a", "-", "-", "-"], ["parent:b", "-", "-", "-"], ["ensemble", "-", "-", "-"]),
    ]
    assert grid.recipes(mine)[-1].compat
