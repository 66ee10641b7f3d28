"""Tables of results: means, differences, verdicts, costs and published figures, in two forms."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from cktf.bench import Cost, compare, cost_key, csv_rows, make_matrix, markdown, save_costs
from cktf.bench.results import Result, save_matrix_definition
from cktf.errors import RecipeError

PAIR = "wrn_40_2:wrn_16_2"
COLUMN = ("cifar100", "wrn_40_2", "wrn_16_2")
MATRIX = {
    "name": "small",
    "data": {"name": "cifar100"},
    "pairs": [PAIR],
    "methods": {"alone": "ce", "KD": "kd", "CKTF": "cktf"},
    "seeds": [0, 1, 2],
    "baseline": "KD",
}


def save_results(place, method, top1, pair=PAIR, string=None):
    for seed, value in enumerate(top1):
        student = pair.rpartition(":")[2]
        recipe = {"kind": "distill", "method": string or method.lower(), "student": student}
        recipe |= {"runtime.precision": "float32"}
        summary = {
            "test_top1": value, "teacher_top1": 75.0, "epochs": 240, "test_images": 10000,
            "device": "a machine", "versions": {"torch": "2"}, "peak_memory_mb": 100.0,
        }  # fmt: skip
        result = Result("cifar100", pair, method, seed, recipe, summary, [], 1)
        path = place / f"{method.replace('|', '')}-{pair.replace(':', '-')}-{seed}.json"
        path.write_bytes(result.to_json())


def save_small_matrix(place, **fields):
    save_matrix_definition(make_matrix(MATRIX | fields), place)


def rows_of(table):
    return {row["method"]: row for row in csv.DictReader(csv_rows(table).splitlines())}


@pytest.fixture
def figures(tmp_path):
    save_results(tmp_path, "alone", [70.0, 71.0, 72.0], string="ce")
    save_results(tmp_path, "KD", [72.0, 73.0, 74.5])
    save_results(tmp_path, "CKTF", [74.0, 75.5, 76.0])
    return tmp_path


def test_table(figures):
    """Means, spreads, ranks and published figures; t has 6 degrees of freedom here."""
    table = compare(figures, baseline="KD")
    entry = table.entries[COLUMN, "CKTF"]
    assert entry.mean == pytest.approx(75.16667, abs=1e-4)
    assert entry.std == pytest.approx(np.std([74.0, 75.5, 76.0], ddof=1))
    samples = [[70.0, 71.0, 72.0], [72.0, 73.0, 74.5], [74.0, 75.5, 76.0]]
    pooled = np.sqrt(np.mean([np.var(sample, ddof=1) for sample in samples]))
    half = stats.t.ppf(0.975, 6) * pooled * np.sqrt(2 / 3)
    assert (entry.difference.low, entry.difference.high) == pytest.approx((2 - half, 2 + half))
    assert entry.published == 75.85
    assert [table.entries[COLUMN, m].rank for m in ("alone", "KD", "CKTF")] == [0, 2, 1]
    lines = markdown(table).splitlines()
    assert "| method | wrn_40_2 → wrn_16_2 | Δ KD [95%] | published |" in lines
    assert "| **75.17 ± 1.04** | +2.00 [−0.21, +4.21] | 75.85 |" in "\n".join(lines)
    assert next(line for line in lines if line.startswith("| KD ")).count("*73.17") == 1
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "pooled over all cells, 1.11 points with 6 degrees of freedom." in "\n".join(lines)
    assert "Holm's method over 2 differences, at 5%." in "\n".join(lines)
    assert "Not told apart from KD: CKTF, alone." in lines
    row = rows_of(table)["CKTF"]
    assert (row["published"], row["by_seed"]) == ("75.8500", "0:74.0000 1:75.5000 2:76.0000")
    p = stats.ttest_ind_from_stats(75.16667, pooled, 3, 73.16667, pooled, 3).statistic
    assert float(row["p"]) == pytest.approx(2 * stats.t.sf(p, 6), abs=1e-4)
    assert float(row["adjusted_p"]) > float(row["p"])


def test_the_primary_contrast_is_not_corrected(figures):
    """It is tested by its own p-value, and only where its methods are those of the matrix."""
    save_results(figures, "KD", [72.0, 73.0, 73.1])
    save_small_matrix(figures, primary="CKTF")
    text = markdown(compare(figures))
    assert (
        "\nPrimary contrast, named in the matrix and not corrected: CKTF is ahead of KD: +2" in text
    )
    assert ", p = 0.0" in text
    assert "except on the primary contrast, are, by Holm's method over 1 differences" in text
    assert "Primary contrast" in markdown(compare(figures, baseline="KD"))
    assert "Primary contrast" not in markdown(compare(figures, baseline="alone"))
    with pytest.raises(RecipeError, match="primary: KD has no baseline"):
        make_matrix(MATRIX | {"primary": "KD"})
    with pytest.raises(RecipeError, match=r"primary: no such method\. Did you mean 'CKTF'"):
        make_matrix(MATRIX | {"primary": "CKFT"})


def test_pairs_are_fixed(tmp_path):
    """A win here and a loss there are told as such, and the mean over both has the seeds' error."""
    for pair, kd, gain in (("a:s", 70.0, 3.0), ("b:s", 80.0, -1.0)):
        save_results(tmp_path, "KD", [kd - 0.5, kd, kd + 0.5], pair=pair)
        save_results(tmp_path, "CKTF", [kd + gain + x for x in (-0.3, 0.0, 0.3)], pair=pair)
    save_results(tmp_path, "AT", [70.0, 70.5], pair="a:s")
    save_small_matrix(tmp_path, methods=["KD", "CKTF"], primary="CKTF", pairs=["a:s", "b:s"])
    table = compare(tmp_path)
    squares, dof = 2 * 0.5 + 2 * 0.18 + 0.125, 9
    half = stats.t.ppf(0.975, dof) * np.sqrt(squares / dof / 3)
    overall = table.contrasts.overall["CKTF"]
    assert overall.pairs == 2
    assert (overall.points, overall.high) == pytest.approx((1.0, 1.0 + half))
    lines = markdown(table).splitlines()
    assert "Over all pairs, ahead of KD: CKTF." in lines
    assert any("CKTF is ahead of KD, mean of 2 pairs: +1.00 [" in line for line in lines)
    assert "On a → s, ahead of KD: CKTF; not told apart from KD: AT." in lines
    assert "On b → s, behind KD: CKTF." in lines
    assert any("fixed: the interval says nothing of other networks." in line for line in lines)


def test_one_seed_has_no_interval(tmp_path):
    save_results(tmp_path, "KD", [70.0])
    save_results(tmp_path, "CKTF", [71.0])
    text = markdown(compare(tmp_path, baseline="KD"))
    assert "| **71.00** | +1.00 |" in text
    assert "Every cell has one seed, so that no interval can be given." in text
    assert "old apart" not in text


def test_an_entry_says_of_how_many_seeds_and_pairs_it_is(tmp_path):
    save_results(tmp_path, "KD", [70.0, 71.0])
    save_results(tmp_path, "CKTF", [71.0, 72.5, 76.0])
    text = markdown(compare(tmp_path, baseline="KD"))
    assert "| **73.17 ± 2.57** | +2.67 [" in text
    assert "| *70.50 ± 0.71* (2) |" in text
    assert "over 3 seeds, or over (n);" in text
    for pair in ("a:s", "b:s"):
        save_results(tmp_path, "KD", [70.0, 71.0], pair=pair)
        save_results(tmp_path, "AT", [71.0, 71.5], pair=pair)
    text = markdown(compare(tmp_path, baseline="KD"))
    assert "mean of the pairs' Δ, (n): of n pairs." in text
    row = next(line for line in text.splitlines() if line.startswith("| AT "))
    assert "] (2) |" in row


def test_unfinished_matrices(tmp_path):
    """Seeds, pairs, methods and data sets; a method that a pair is without is not missing."""
    for method, top1 in (("KD", 72.0), ("CKTF", 74.0), ("AT", 74.0)):
        save_results(tmp_path, method, [top1])
    pairs = [PAIR, {"teacher": "vgg13", "student": "vgg8", "without": ["alone"]}]
    save_small_matrix(tmp_path, pairs=pairs)
    unfinished = "Unfinished: 2 of the matrix's {} cells are done."
    assert unfinished.format(15) in markdown(compare(tmp_path))
    save_small_matrix(tmp_path, data=[{"name": "cifar100"}, {"name": "cifar10"}])
    assert unfinished.format(18) in markdown(compare(tmp_path))
    save_small_matrix(tmp_path, seeds=[0], methods=["KD", "CKTF"])
    assert "Unfinished" not in markdown(compare(tmp_path))


def test_missing_methods_failures_and_single_seeds_are_named(tmp_path):
    place = tmp_path / "results"
    place.mkdir()
    save_results(place, "KD", [72.0, 73.0])
    save_results(place, "AT", [71.0])
    save_small_matrix(place, methods={"KD": "kd", "AT": "at", "CKTF": "cktf", "SP": "sp"})
    text = markdown(compare(tmp_path))
    assert "Without a result so far: CKTF, SP." in text
    assert "or over (n); the spread of one seed is unknown" in text
    assert "Failed" not in text
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "a-cell.txt").write_text("no memory")
    assert "Failed at the last try: a-cell; see failures/." in markdown(compare(tmp_path))
    save_results(place, "AT", [71.0, 72.0])
    assert "unknown" not in markdown(compare(tmp_path))


def test_names_of_networks_methods_and_matrices(tmp_path):
    """Networks with colons, bars in a method's name, a description of several lines."""
    save_results(tmp_path, "KD {a|b}", [72.0], pair="timm:resnet18:resnet8", string="kd")
    methods = {"KD {a|b}": "kd"}
    save_small_matrix(tmp_path, methods=methods, about="one\n  two.\n", baseline=None)
    table = compare(tmp_path)
    assert "| timm:resnet18 → resnet8 |" in markdown(table)
    assert r"| KD {a\|b} | **72.00** |" in markdown(table)
    assert "\none two. Top-1" in markdown(table)
    row = rows_of(table)["KD {a|b}"]
    assert (row["teacher"], row["student"]) == ("timm:resnet18", "resnet8")


def test_a_method_may_have_a_baseline_of_its_own(tmp_path):
    methods = {
        "KD": "kd",
        "CKTF": "cktf",
        "CKTF queue": {"method": "cktf", "against": "CKTF"},
        "CKTF all": {"method": "cktf", "against": "CKTF"},
    }
    save_results(tmp_path, "KD", [72.0, 73.0, 74.0])
    save_results(tmp_path, "CKTF", [75.0, 76.1, 77.0])
    save_results(tmp_path, "CKTF queue", [71.0, 72.0, 73.1], string="cktf")
    save_results(tmp_path, "CKTF all", [75.1, 76.0, 77.2], string="cktf")
    save_small_matrix(tmp_path, methods=methods)
    text = markdown(compare(tmp_path))
    head, *_, row = (line for line in text.splitlines() if line.startswith("|"))
    assert "| Δ [95%] |" in head
    assert row.startswith("| CKTF all | **76.10 ± 1.05** | +0.07 [")
    assert "Δ: difference from the mean of KD or CKTF, in points" in text
    assert "\nAhead of KD: CKTF.\nBehind CKTF: CKTF queue.\n" in text
    assert "\nNot told apart from CKTF: CKTF all.\n" in text
    assert "ot told apart from KD: CKTF queue." in markdown(compare(tmp_path, baseline="KD"))
    methods["CKTF all"]["against"] = "CKFT"
    with pytest.raises(RecipeError, match=r"CKTF all.against: no such method. .*CKTF"):
        make_matrix(MATRIX | {"methods": methods})


def test_older_matrices_and_results_are_read(tmp_path):
    """`added: CKTF` compares NAME+CKTF with NAME; `together` is the old name of `interleaved`."""
    methods = {"KD": "kd", "KD+CKTF": {"method": "cktf+kd"}, "alone+CKTF": "cktf"}
    matrix = make_matrix(
        MATRIX | {"methods": methods, "added": "CKTF", "together": 4, "baseline": None}
    )
    against = {name: entry.against for name, entry in matrix.methods.items()}
    assert against == {"KD": None, "KD+CKTF": "KD", "alone+CKTF": None}
    assert matrix.interleaved == 4
    save_results(tmp_path, "KD", [74.0])
    save_results(tmp_path, "KD+CKTF", [75.0], string="cktf+kd")
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text().replace('"interleaved"', '"together"'))
    save_matrix_definition(matrix, tmp_path)
    lines = markdown(compare(tmp_path)).splitlines()
    assert lines[3:5] == ["| KD | *74.00* |  | 74.92 |", "| KD+CKTF | **75.00** | +1.00 | 75.89 |"]


def test_costs_are_those_measured_separately(figures):
    """Not those of finished runs, which other work on the machine changes; on one device only."""
    table = compare(figures, baseline="KD")
    assert all(e.relative_time is e.memory_mb is None for e in table.entries.values())
    assert "time ×" not in markdown(table)
    costs = {"alone": Cost(0.1, 300.0, 1.0, "GPU A"), "KD": Cost(0.15, 400.0, 1.0, "GPU A")}
    costs["CKTF"] = Cost(0.01, 900.0, 1.0, "GPU B")
    save_costs({cost_key("cifar100", PAIR, m): cost for m, cost in costs.items()}, figures)
    table = compare(figures, baseline="KD")
    times = [table.entries[COLUMN, method].relative_time for method in costs]
    assert times == [1.0, pytest.approx(1.5), None]
    lines = markdown(table).splitlines()
    assert "measured by itself on GPU A, GPU B." in lines[-1]
    assert next(line for line in lines if line.startswith("| KD")).endswith("| 1.50 | 400 |")


def test_times_are_relative_to_the_first_student_alone(tmp_path):
    """Without one there are memory figures only."""
    methods = {"the usual": "ce", "KD": "kd", "another": "ce"}
    save_small_matrix(tmp_path, methods=methods)
    for method, seconds in (("the usual", 0.1), ("KD", 0.2), ("another", 0.4)):
        save_results(tmp_path, method, [72.0], string=methods[method])
        cost = {cost_key("cifar100", PAIR, method): Cost(seconds, 9.0, 1.0, "A")}
        save_costs(cost, tmp_path)
    times = {m: e.relative_time for (_, m), e in compare(tmp_path).entries.items()}
    assert times == {"the usual": 1.0, "KD": 2.0, "another": pytest.approx(4.0)}
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text().replace('"method": "ce"', '"method": "at"'))
    text = markdown(compare(tmp_path))
    assert "| memory MiB |" in text
    assert "time ×" not in text
    assert "Peak memory: each measured by itself on A." in text


def test_a_table_marks_mixed_engines_and_machines(figures):
    """Cells of two commits or processors stand in one table only with a line that says so."""
    assert "Mixed: " not in markdown(compare(figures, baseline="KD"))
    records = {"KD": ("aaaa", "avx2", "emulated"), "CKTF": ("bbbb", "avx512_bf16", "multiplied")}
    for path in figures.glob("*.json"):
        cell = json.loads(path.read_text())
        commit, flag, bfloat16 = records.get(cell["method"], records["KD"])
        cell["summary"] |= {"commit": commit, "cpu": "EPYC", "cpu_flags": [flag]}
        cell["summary"] |= {"bfloat16": bfloat16, "precision": "bfloat16"}
        path.write_text(json.dumps(cell))
    (line,) = [x for x in markdown(compare(figures, baseline="KD")).splitlines() if "Mixed" in x]
    assert "commit (aaaa, bbbb)" in line
    assert "cpu (EPYC (avx2), EPYC (avx512_bf16))" in line
    assert "bfloat16 (emulated, multiplied)" in line
    assert "PyTorch" not in line
