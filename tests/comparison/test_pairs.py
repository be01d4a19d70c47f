"""Comparisons of several pairs, and tables of their means."""

import csv
import json
import re
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from hf_zipit.comparison.pairs import Pair, mean_results, read_pairs
from hf_zipit.comparison.report import check_report, comparison_table, plain, write_report
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.results import Result
from hf_zipit.merging.merger import Merger

SETTINGS = {"cut": None, "calibrate": "refit", "width": 1.0, "flops_budget": None, "seed": 3}


def report(average, joint, **settings):
    """The results of a pair with one merge."""
    return [
        Result("zip", 10, 4, {"a": average}, average, joint, settings={**SETTINGS, **settings}, seconds=2.0),
        Result("parent:a", 10, 4, {"a": 0.9}, 0.9, 0.5),
        Result("parent:b", 10, 4, {"b": 0.8}, 0.8, 0.4),
        Result("ensemble", 20, 8, {"a": 0.9, "b": 0.8}, 0.85, 0.7),
    ]


def test_the_mean_and_the_deviation_are_plain_computations():
    averages, joints = [0.71, 0.74, 0.75], [0.5, 0.55, 0.51]
    rows = mean_results([report(*scores) for scores in zip(averages, joints, strict=True)], ["x", "y", "z"])
    assert [row.model for row in rows] == ["zip", "parent:1", "parent:2", "ensemble"]
    assert rows[0].average == pytest.approx(fmean(averages))
    assert rows[0].joint == pytest.approx(fmean(joints))
    assert rows[0].deviation == pytest.approx({"average": stdev(averages), "joint": stdev(joints)})
    assert rows[0].settings == SETTINGS
    assert (rows[0].flops, rows[0].parameters, rows[0].seconds, rows[0].pairs) == (10, 4, 2.0, 3)
    header, first, *_ = (re.split("  +", line) for line in comparison_table(rows, []).splitlines())
    assert header == [
        *("method", "cut", "calibrate", "average", "joint", "FLOPs", "params"),
        *("correlation", "seconds", "pairs"),
    ]
    assert first[:5] == ["zip", "none", "refit", "73.3 ± 2.1", "52.0 ± 2.6"]
    assert first[-1] == "3"


def test_one_pair_has_no_deviation():
    [row, *_] = mean_results([report(0.7, 0.5)], ["x"])
    assert row.deviation == {}
    assert "±" not in comparison_table([row], [])


def test_what_pairs_chose_differently_varies():
    reports = [report(0.7, 0.5, balance=balance, cut=cut) for balance, cut in ((0.3, "layer1"), (0.5, None))]
    [row, *_] = mean_results(reports, ["x", "y"])
    assert row.settings == {**SETTINGS, "balance": "varies", "cut": "varies"}


def test_pairs_that_are_measured_in_different_ways_have_no_mean():
    agreement = [replace(row, joint=None, distance=0.1) for row in report(0.8, 0.6)]
    with pytest.raises(OptionError, match=r"x: accuracy, y: agreement with the parents"):
        mean_results([report(0.7, 0.5), agreement], ["x", "y"])


def test_a_merge_that_failed_for_one_pair_is_the_mean_of_the_others_and_is_named():
    first, second = report(0.7, 0.5), report(0.8, 0.6)
    second[0] = Result("zip", 0, 0, settings=SETTINGS, error="it cannot")
    rows = mean_results([first, second], ["x", "y"])
    assert [(row.model, row.average, row.pairs) for row in rows[:1]] == [("zip", 0.7, 1)]
    assert [row.pairs for row in rows[1:4]] == [2, 2, 2]
    assert rows[-1].error == "y: it cannot"
    assert comparison_table(rows, []).splitlines()[-1] == "failed: zip, cut none, calibrate refit: y: it cannot"


def test_tables_in_markdown_and_latex_have_the_columns_of_the_text(tmp_path):
    rows = mean_results([report(0.7, 0.5), report(0.8, 0.6, flops_budget=None)], ["x", "y"])
    rows = [replace(rows[0], settings={**rows[0].settings, "cut": "layer_1.a|b&c"}), *rows[1:]]
    failed = Result("zip", 0, 0, settings=SETTINGS, error="50 % of\n#1 {x} ~ ^ \\ $ <a>")
    written = write_report([*rows, failed], [], tmp_path)
    assert [path.name for path in written] == [f"results.{kind}" for kind in ("csv", "json", "md", "tex", "png")]
    header, rule, first, *others = (tmp_path / "results.md").read_text().splitlines()
    columns = comparison_table(rows, []).splitlines()[0].split()
    assert [cell.strip() for cell in header.strip("|").split("|")] == columns
    assert rule == "|---" + "|---:" * (len(columns) - 1) + "|"
    assert first.startswith(r"| zip | layer\_1.a\|b&c | refit | 75.0 ± 7.1 | 55.0 ± 7.1 | 1.00x |")
    assert others[-1].startswith("- failed: zip, cut none, calibrate refit: 50 % of #1 {x}")
    latex = (tmp_path / "results.tex").read_text().splitlines()
    assert latex[0] == r"% \usepackage{booktabs}"
    assert latex[1].startswith(r"% failed: zip, cut none, calibrate refit: 50 \% of \#1 \{x\} \textasciitilde{}")
    assert latex[2:6] == [rf"\begin{{tabular}}{{l{'r' * 9}}}", r"\toprule", rf"{' & '.join(columns)} \\", r"\midrule"]
    assert latex[6].startswith(r"zip & layer\_1.a$|$b\&c & refit & 75.0 $\pm$ 7.1 & 55.0 $\pm$ 7.1 &")
    assert latex[-2:] == [r"\bottomrule", r"\end{tabular}"]
    with (tmp_path / "results.csv").open() as file:
        line = next(csv.DictReader(file))
    assert float(line["average deviation"]) == rows[0].deviation["average"]
    assert (line["pairs"], line["seed"]) == ("2", "3")
    assert json.loads((tmp_path / "results.json").read_text())[0]["pairs"] == 2


def test_pairs_are_read_with_paths_beside_the_file(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "pairs.yml"
    file.write_text(
        "- {models: [a, user/b], data: user/images}\n- {name: two, models: [./c, d/], data: [e], eval_data: f}"
    )
    first, second = read_pairs(file)
    assert first == Pair(name="pair-1", models=[str(tmp_path / "a"), "user/b"], data=["user/images"])
    assert second.name == "two"
    assert second.models == [str(tmp_path / "c"), str(tmp_path / "d")]
    assert second.eval_data == [str(tmp_path / "f")]
    (tmp_path / "pairs.json").write_text(json.dumps([{"models": ["user/a", "user/b"], "data": ["user/c"]}]))
    assert read_pairs(tmp_path / "pairs.json")[0].models == ["user/a", "user/b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no pairs"),
        ("models: [a, b]", "holds no pairs"),
        ("- [a, b]", "holds no pairs"),
        ("- {models: [u/a, u/b]}", "pair 1: data"),
        ("- {models: [u/a], data: u/d}", "pair 1: models"),
        ("- {models: [u/a, u/b], data: u/d, modls: 3}", "pair 1: unknown key 'modls'; did you mean 'models'"),
        ("- {name: results.md, models: [u/a, u/b], data: u/d}", "is that of a file of the report"),
        ("- {name: ../x, models: [u/a, u/b], data: u/d}", "cannot name a folder"),
        (
            "- {name: x, models: [u/a, u/b], data: u/d}\n- {name: x, models: [u/a, u/b], data: u/d}",
            "names .* must differ",
        ),
        ("- {models: [u/a, u/b], data: u/d}\n- {models: [u/a, u/b, u/c], data: u/d}", "different numbers of models"),
        ("- {models: [u/a, u/b], data: &x u/d, eval_data: *x}", "cannot read the pairs in .* alias"),
    ],
)
def test_a_malformed_file_of_pairs_is_refused(tmp_path, text, said):
    file = tmp_path / "pairs.yml"
    file.write_text(text)
    with pytest.raises(OptionError, match=said):
        read_pairs(file)
    with pytest.raises(OptionError, match="there is no such file"):
        read_pairs(tmp_path / "gone.yml")


def test_a_report_of_pairs_is_only_written_where_nothing_else_is(tmp_path):
    (tmp_path / "x").mkdir()
    check_report(tmp_path, ["x", "y"])
    (tmp_path / "x" / "rows.jsonl").touch()  # interrupted before the first mean
    check_report(tmp_path, ["x", "y"])
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "config.json").touch()
    with pytest.raises(OptionError, match=r"y holds no earlier report, but config\.json"):
        check_report(tmp_path, ["x", "y"])
    with pytest.raises(OptionError, match="holds no earlier report, but x, y"):
        check_report(tmp_path)


def test_the_command_compares_pairs_and_resumes_each(run, digits, digits_data, tmp_path, monkeypatch):
    first, second = digits
    file = tmp_path / "pairs.yml"
    pairs = [
        {"models": [str(first), str(second)], "data": [str(digits_data)]},
        {"name": "turned", "models": [str(second), str(first)], "data": [str(digits_data)]},
    ]
    file.write_text(json.dumps(pairs))
    options = ["--num-images", 32, "--eval-images", 50, "--methods", "average,permute", "-o", tmp_path / "report"]
    code, printed, said = run("compare", "--pairs", file, *options, "--seed", 7, "--json")
    assert code == 0, said
    found = json.loads(printed)
    assert [pair["name"] for pair in found["pairs"]] == ["pair-1", "turned"]
    for pair in found["pairs"]:
        assert pair["rows"] == json.loads((tmp_path / "report" / pair["name"] / "results.json").read_text())
    assert found["rows"] == json.loads((tmp_path / "report" / "results.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["average", "permute", "parent:1", "parent:2", "ensemble"]
    for number, row in enumerate(found["rows"]):
        mine = [pair["rows"][number] for pair in found["pairs"]]
        assert row["average"] == pytest.approx(fmean(one["average"] for one in mine))
        assert row["deviation"]["joint"] == pytest.approx(stdev(one["joint"] for one in mine))
        assert row["pairs"] == 2
    assert found["rows"][0]["seed"] == 7
    assert found["rows"][0]["deviation"]["average"] == pytest.approx(0, abs=0.05)  # an average has no order of models

    def failing(self, recipe):
        raise OptionError("it cannot")

    monkeypatch.setattr(Merger, "merge", failing)  # nothing is made again
    code, printed, _ = run("compare", "--pairs", file, *options, "--seed", 7)
    assert code == 0
    assert printed.splitlines()[0].split()[-1] == "pairs"
    assert "failed" not in printed
    code, _, said = run("compare", "--pairs", file, *options, "--seed", 8)
    assert code == 1
    assert "none of the" in said


def test_pairs_and_models_are_not_given_together(run, digits, tmp_path):
    for given in (
        ["--pairs", tmp_path / "pairs.yml", *digits],
        [],
        ["--pairs", tmp_path / "p.yml", "--data", "user/d"],
    ):
        code, _, said = run("compare", *given, "-o", tmp_path / "report")
        assert code == 2
        assert "give MODELS and --data, or --pairs with a file that names them" in said
    code, _, said = run("compare", *digits, "-o", tmp_path / "report")
    assert code == 2
    assert "no --data" in said


def test_rows_carry_their_seed():
    assert plain(report(0.7, 0.5)[0])["seed"] == 3
