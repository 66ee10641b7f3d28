"""Tables of results: means, intervals, verdicts, costs and published figures, in three forms."""

import csv
import json
import math
import statistics
import sys

import pytest

from cktf.bench import Cost, compare, cost_key, csv_rows, keep_costs, latex, make_matrix, markdown
from cktf.bench.results import Result, keep_matrix
from cktf.bench.statistics import paired
from cktf.errors import RecipeError

MATRIX = {
    "name": "small",
    "data": {"name": "cifar100"},
    "pairs": ["wrn_40_2:wrn_16_2"],
    "methods": {"alone": "ce", "KD": "kd", "CKTF": "cktf"},
    "seeds": [0, 1, 2],
    "baseline": "KD",
}


def results(place, method, top1, pair="wrn_40_2:wrn_16_2", string=None):
    for seed, value in enumerate(top1):
        student = pair.rpartition(":")[2]
        recipe = {"kind": "distill", "method": string or method.lower(), "student": student}
        recipe |= {"runtime.precision": "float32"}
        summary = {
            "test_top1": value, "teacher_top1": 75.0, "epochs": 240, "test_images": 10000,
            "device": "a machine", "versions": {"torch": "2"}, "peak_memory_mb": 100.0,
            "images_per_second": 100.0 if string == "ce" else 50.0,
        }  # fmt: skip
        found = Result("cifar100", pair, method, seed, recipe, summary, [], 1)
        path = place / f"{method}-{pair.replace(':', '-')}-{seed}.json"
        path.write_bytes(found.to_json())


@pytest.fixture
def figures(tmp_path):
    results(tmp_path, "alone", [70.0, 71.0, 72.0], string="ce")
    results(tmp_path, "KD", [72.0, 73.0, 74.5])
    results(tmp_path, "CKTF", [74.0, 75.5, 76.0])
    results(tmp_path, "CKTF", [60.0], pair="vgg13:vgg8")
    return tmp_path


def test_table(figures):
    """Means, spreads and an interval by the book: t of 2 degrees of freedom is 4.303."""
    table = compare(figures, baseline="KD")
    pair = ("cifar100", "wrn_40_2", "wrn_16_2")
    entry = table.entries[pair, "CKTF"]
    assert entry.mean == pytest.approx(75.16667, abs=1e-4)
    assert entry.deviation == pytest.approx(statistics.stdev([74.0, 75.5, 76.0]))
    gains = [2.0, 2.5, 1.5]
    half = 4.30265 * statistics.stdev(gains) / math.sqrt(3)
    assert entry.difference[:3] == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-4)
    assert entry.published == 75.85
    assert [table.entries[pair, m].rank for m in ("alone", "KD", "CKTF")] == [0, 2, 1]
    assert table.overall["CKTF"].pairs == 1


def test_table_forms(figures):
    table = compare(figures, baseline="KD")
    lines = markdown(table).splitlines()
    assert "published" in lines[0]
    row = next(line for line in lines if line.startswith("| CKTF "))
    assert "**75.17 ± 1.04** | +2.00 [+0.76, +3.24] | 75.85 |" in row
    assert next(line for line in lines if line.startswith("| KD ")).count("*73.17") == 1
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "On wrn_40_2 → wrn_16_2, ahead of KD: CKTF; behind KD: alone." in lines
    assert r"\textbf{75.17 $\pm$ 1.04}" in latex(table)
    assert r"wrn\_40\_2 $\to$ wrn\_16\_2" in latex(table)
    rows = list(csv.DictReader(csv_rows(table).splitlines()))
    cktf = next(r for r in rows if r["method"] == "CKTF" and r["n"] == "3")
    assert (cktf["published"], cktf["by_seed"]) == ("75.8500", "0:74.0000 1:75.5000 2:76.0000")


def test_pairs_count_once_whatever_their_seeds(tmp_path):
    """Seven pairs with means of .5 .6 -.1 .8 .2 -.3 .9: t of 6 degrees of freedom is 2.447."""
    gains = [0.5, 0.6, -0.1, 0.8, 0.2, -0.3, 0.9]
    for number, gain in enumerate(gains):
        results(tmp_path, "KD", [70.0, 71.0, 72.0], pair=f"t{number}:s")
        results(tmp_path, "CKTF", [v + gain for v in (70.1, 71.0, 71.9)], pair=f"t{number}:s")
    table = compare(tmp_path, baseline="KD")
    half = 2.44691 * statistics.stdev(gains) / math.sqrt(7)
    mean = statistics.mean(gains)
    assert table.overall["CKTF"] == pytest.approx((mean, mean - half, mean + half, 7), abs=1e-4)
    text = markdown(table)
    assert "Over all pairs, not told apart from KD: CKTF.\n" in text
    assert "interval over pairs." in text


def test_each_pair_has_a_verdict(tmp_path):
    """A win here and a loss there are told as such; one seed is told to have no interval."""
    for pair, gain in (("a:s", 1.0), ("b:s", -1.0)):
        results(tmp_path, "KD", [70.0, 71.0, 72.0], pair=pair)
        results(tmp_path, "CKTF", [v + gain for v in (70.1, 71.0, 71.9)], pair=pair)
        results(tmp_path, "AT", [75.0], pair=pair)
    lines = markdown(compare(tmp_path, baseline="KD")).splitlines()
    assert "On a → s, ahead of KD: CKTF; one seed in common, no interval: AT." in lines
    assert "On b → s, behind KD: CKTF; one seed in common, no interval: AT." in lines
    assert lines[-1].startswith("Over all pairs, ")


def test_one_seed_has_no_verdict(tmp_path):
    results(tmp_path, "KD", [70.0, 71.0])
    results(tmp_path, "AT", [75.0])
    results(tmp_path, "CKTF", [70.0, 71.1])
    lines = markdown(compare(tmp_path, baseline="KD")).splitlines()
    assert "Not told apart from KD: CKTF." in lines
    assert "One seed in common, no interval: AT." in lines
    results(tmp_path, "CKTF", [70.0])
    (tmp_path / "CKTF-wrn_40_2-wrn_16_2-1.json").unlink()
    assert "One seed in common, no interval: all." in markdown(compare(tmp_path, baseline="KD"))


def test_an_entry_says_of_how_many_seeds_it_is(tmp_path):
    """The method has three seeds and its baseline two, which are those of the difference."""
    results(tmp_path, "KD", [70.0, 71.0])
    results(tmp_path, "CKTF", [71.0, 72.5, 76.0])
    table = compare(tmp_path, baseline="KD")
    text = markdown(table)
    assert "| **73.17 ± 2.57** | +1.25 [−1.93, +4.43] (2) |" in text
    assert "| *70.50 ± 0.71* (2) |" in text
    assert "over 3 seeds, or over (n);" in text
    assert "Δ: points over KD on the seeds that both have, and the 95%" in text
    assert r"\underline{70.50 $\pm$ 0.71} (2)" in latex(table)
    rows = {r["method"]: r for r in csv.DictReader(csv_rows(table).splitlines())}
    assert [rows["CKTF"][name] for name in ("n", "shared_seeds")] == ["3", "2"]
    (tmp_path / "CKTF-wrn_40_2-wrn_16_2-2.json").unlink()
    even = markdown(compare(tmp_path, baseline="KD"))
    assert "over 2 seeds; " in even
    assert "(2)" not in even


def test_a_mean_of_some_pairs_says_so(tmp_path):
    for pair in ("a:s", "b:s"):
        results(tmp_path, "KD", [70.0, 71.0], pair=pair)
        results(tmp_path, "AT", [71.0, 71.5], pair=pair)
    assert "(n)" not in markdown(compare(tmp_path, baseline="KD"))
    results(tmp_path, "CKTF", [71.0, 72.5], pair="a:s")
    text = markdown(compare(tmp_path, baseline="KD"))
    assert "| +1.25 (1) |" in text
    assert "over pairs; (n): of n pairs." in text


def test_what_the_matrix_has_and_the_table_has_not(tmp_path):
    """Seeds, pairs, methods and data sets; what a pair is without is not missed."""
    pairs = ["wrn_40_2:wrn_16_2", {"teacher": "vgg13", "student": "vgg8", "without": ["alone"]}]
    keep_matrix(make_matrix(MATRIX | {"pairs": pairs}), tmp_path)
    results(tmp_path, "KD", [72.0])
    results(tmp_path, "CKTF", [74.0])
    results(tmp_path, "AT", [74.0])
    text = markdown(compare(tmp_path))
    assert (
        "Unfinished: 2 of the matrix's 15 cells are done; pairs without any: vgg13 → vgg8; " in text
    )
    assert "; methods without any: 1.\n" in text
    data = [{"name": "cifar100"}, {"name": "cifar10"}]
    keep_matrix(make_matrix(MATRIX | {"data": data}), tmp_path)
    text = markdown(compare(tmp_path))
    assert "18 cells are done; pairs without any: cifar10: wrn_40_2 → wrn_16_2; " in text
    keep_matrix(make_matrix(MATRIX | {"seeds": [0], "methods": ["KD", "CKTF"]}), tmp_path)
    assert "Unfinished" not in markdown(compare(tmp_path))


def test_names_of_networks_may_have_colons(tmp_path):
    results(tmp_path, "KD", [72.0], pair="timm:resnet18:resnet8")
    table = compare(tmp_path)
    assert "| timm:resnet18 → resnet8 |" in markdown(table)
    (row,) = csv.DictReader(csv_rows(table).splitlines())
    assert (row["teacher"], row["student"]) == ("timm:resnet18", "resnet8")


def test_what_is_added_stands_beside(tmp_path):
    """As the paper's Table 2: each method without and with it, and the difference of the two."""
    methods = {"alone": "ce", "alone+CKTF": "cktf", "KD": "kd"}
    matrix = MATRIX | {"methods": methods, "added": "CKTF"}
    results(tmp_path, "alone", [70.0, 71.0, 72.0], string="ce")
    results(tmp_path, "alone+CKTF", [71.0, 72.0, 74.0], string="cktf")
    results(tmp_path, "KD", [72.0, 73.0, 74.5])
    keep_matrix(make_matrix(matrix), tmp_path)
    table = compare(tmp_path)
    lines = markdown(table).splitlines()
    assert lines[0].split(" | ")[1:] == [
        "wrn_40_2 → wrn_16_2", "published", "+CKTF", "published", "Δ [95%] |",
    ]  # fmt: skip
    row = next(line for line in lines if line.startswith("| alone "))
    assert "| 71.00 ± 1.00 | 73.26 | *72.33 ± 1.53* | 75.85 | +1.33 [" in row
    row = next(line for line in lines if line.startswith("| KD "))
    assert "| **73.17 ± 1.26** | 74.92 | – | – |  |" in row
    assert not any(line.startswith("| alone+CKTF") for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    rows = {r["method"]: r for r in csv.DictReader(csv_rows(table).splitlines())}
    assert (rows["alone+CKTF"]["baseline"], rows["KD"]["baseline"]) == ("alone", "")
    assert compare(tmp_path, baseline="KD").added is None
    with pytest.raises(RecipeError, match="called NAME"):
        make_matrix(matrix | {"added": "CRD"})


def test_published_figures_stand_behind_what_they_are_of(tmp_path):
    """Of KD 74.92 and of CKTF+KD 75.89, as the paper has them."""
    methods = {"KD": "kd", "KD+CKTF": "cktf+kd", "AT": "at", "AT+CKTF": "cktf+at"}
    results(tmp_path, "KD", [74.0])
    results(tmp_path, "KD+CKTF", [75.0], string="cktf+kd")
    results(tmp_path, "AT", [73.0])
    results(tmp_path, "AT+CKTF", [74.5], string="cktf+at")
    keep_matrix(make_matrix(MATRIX | {"methods": methods, "added": "CKTF"}), tmp_path)
    head, _, teacher, *rows = markdown(compare(tmp_path)).splitlines()
    assert head == "| method | wrn_40_2 → wrn_16_2 | published | +CKTF | published | Δ |"
    assert teacher == "| teacher | 75.00 | 75.61 |  |  |  |"
    assert rows[0] == "| KD | 74.00 | 74.92 | **75.00** | 75.89 | +1.00 |"
    assert rows[1] == "| AT | 73.00 | 74.08 | *74.50* | – | +1.50 |"


def test_names_do_not_break_a_form(tmp_path):
    """What LaTeX and Markdown have a meaning for, and a matrix described in several lines."""
    name = r"KD^2 {a|b} $~\x_%&#"
    matrix = MATRIX | {"methods": {name: "kd"}, "about": "one\n  two.\n", "baseline": None}
    keep_matrix(make_matrix(matrix), tmp_path)
    results(tmp_path, "KD", [72.0])
    file = tmp_path / "KD-wrn_40_2-wrn_16_2-0.json"
    file.write_text(file.read_text().replace('"method": "KD"', f'"method": {json.dumps(name)}'))
    table = compare(tmp_path)
    assert r"| KD^2 {a\|b} $~\x_%&# | **72.00**" in markdown(table)
    assert "\none two. Top-1" in markdown(table)
    lines = latex(table).splitlines()
    row = r"KD\textasciicircum{}2 \{a$|$b\} \$\textasciitilde{}\textbackslash{}x\_\%\&\# & "
    assert any(line.startswith(row) for line in lines)
    assert lines[0].startswith("% one two. Top-1")
    first = lines.index(next(line for line in lines if not line.startswith("%")))
    assert lines[first].startswith(r"\begin{tabular}")


def test_a_method_may_have_a_baseline_of_its_own(tmp_path):
    methods = {
        "KD": "kd",
        "CKTF": "cktf",
        "CKTF queue": {"method": "cktf", "against": "CKTF"},
        "CKTF all": {"method": "cktf", "against": "CKTF"},
    }
    results(tmp_path, "KD", [72.0, 73.0, 74.0])
    results(tmp_path, "CKTF", [74.0, 75.1, 76.0])
    results(tmp_path, "CKTF queue", [71.0, 72.0, 73.1], string="cktf")
    results(tmp_path, "CKTF all", [74.1, 75.0, 76.2], string="cktf")
    matrix = MATRIX | {"methods": methods, "baseline": "KD"}
    keep_matrix(make_matrix(matrix), tmp_path)
    text = markdown(compare(tmp_path))
    head, *_, row = (line for line in text.splitlines() if line.startswith("|"))
    assert "| Δ [95%] |" in head
    assert row.startswith("| CKTF all | **75.10 ± 1.05** | +0.07 [")
    assert "Δ: points over KD or CKTF on the seeds that both have" in text
    assert "\nAhead of KD: CKTF.\nBehind CKTF: CKTF queue.\n" in text
    assert "\nNot told apart from CKTF: CKTF all.\n" in text
    assert "Behind KD: CKTF queue." in markdown(compare(tmp_path, baseline="KD"))
    with pytest.raises(RecipeError, match="leave `against` away"):
        make_matrix(matrix | {"added": "KD", "methods": methods | {"CKTF+KD": "cktf+kd"}})
    methods["CKTF all"]["against"] = "CKFT"
    with pytest.raises(RecipeError, match=r"CKTF all.against: no such method. .*CKTF"):
        make_matrix(matrix)


def test_costs_are_those_measured_by_themselves(figures):
    """Speed and memory of finished runs, which other work on the machine changes, are not shown."""
    table = compare(figures, baseline="KD")
    assert all(e.relative_time is e.memory_mb is None for e in table.entries.values())
    assert "time ×" not in markdown(table)
    pair = ("cifar100", "wrn_40_2", "wrn_16_2")
    costs = {"alone": Cost(0.1, 300.0, 1.0, "GPU A"), "KD": Cost(0.15, 400.0, 1.0, "GPU A")}
    costs["CKTF"] = Cost(0.01, 900.0, 1.0, "GPU B")
    keep_costs(
        {cost_key("cifar100", "wrn_40_2:wrn_16_2", method): cost for method, cost in costs.items()},
        figures,
    )
    table = compare(figures, baseline="KD")
    times = [table.entries[pair, method].relative_time for method in costs]
    assert times == [1.0, pytest.approx(1.5), None]
    text = markdown(table)
    assert "measured by itself on GPU A, GPU B." in text
    assert next(line for line in text.splitlines() if line.startswith("| KD")).endswith(
        "| 1.50 | 400 |"
    )


def test_memory_without_a_student_alone(tmp_path):
    """A time is over that of one; memory is a figure by itself."""
    for method, memory in (("KD", 400.0), ("CKTF", 900.0)):
        results(tmp_path, method, [72.0])
        cost = {cost_key("cifar100", "wrn_40_2:wrn_16_2", method): Cost(0.1, memory, 1.0, "A")}
        keep_costs(cost, tmp_path)
    text = markdown(compare(tmp_path))
    assert "| memory MiB |" in text
    assert "time ×" not in text
    assert "Peak memory: each measured by itself on A." in text


def test_times_are_over_the_first_student_alone_of_the_matrix(tmp_path):
    methods = {"the usual": "ce", "KD": "kd", "another": "ce"}
    keep_matrix(make_matrix(MATRIX | {"methods": methods}), tmp_path)
    for method, seconds in (("the usual", 0.1), ("KD", 0.2), ("another", 0.4)):
        results(tmp_path, method, [72.0], string=methods[method])
        cost = {cost_key("cifar100", "wrn_40_2:wrn_16_2", method): Cost(seconds, 9.0, 1.0, "A")}
        keep_costs(cost, tmp_path)
    times = {m: e.relative_time for (_, m), e in compare(tmp_path).entries.items()}
    assert times == {"the usual": 1.0, "KD": 2.0, "another": pytest.approx(4.0)}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("CKTF (β 2, θ 0.5, Λ)", r"CKTF ($\beta$ 2, $\theta$ 0.5, $\Lambda$)"),
        ("[ours]", "{}[ours]"),
        ("* KD", "{}* KD"),
    ],
)
def test_letters_and_signs_of_latex(tmp_path, name, row):
    """Greek; and what TeX takes for an option of the row's end before."""
    results(tmp_path, "KD", [72.0])
    file = tmp_path / "KD-wrn_40_2-wrn_16_2-0.json"
    file.write_text(file.read_text().replace('"method": "KD"', f'"method": {json.dumps(name)}'))
    assert f"\n{row} & " in latex(compare(tmp_path))


def test_intervals_without_scipy(figures, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(RecipeError, match=r"^Intervals need scipy: pip install"):
        compare(figures, baseline="KD")


def test_paired_needs_common_seeds():
    assert paired({0: 1.0}, {1: 2.0}) is None
    assert paired({0: 1.0}, {0: 3.0, 1: 2.0}).low is None


def test_a_table_marks_mixed_engines_and_machines(tmp_path):
    """Cells of two commits or processors stand in one table only with a line that says so."""
    for method, values in (("KD", [70.0, 71.0]), ("CKTF", [71.0, 72.0])):
        results(tmp_path, method, values)
    assert "Mixed: " not in markdown(compare(tmp_path, baseline="KD"))
    records = {"KD": ("aaaa", "avx2", "emulated"), "CKTF": ("bbbb", "avx512_bf16", "multiplied")}
    for path in tmp_path.glob("*.json"):
        cell = json.loads(path.read_text())
        commit, flag, bfloat16 = records[cell["method"]]
        cell["summary"] |= {"commit": commit, "cpu": "EPYC", "cpu_flags": [flag]}
        cell["summary"] |= {"bfloat16": bfloat16, "precision": "bfloat16"}
        path.write_text(json.dumps(cell))
    (line,) = [x for x in markdown(compare(tmp_path, baseline="KD")).splitlines() if "Mixed" in x]
    assert "commit (aaaa, bbbb)" in line
    assert "cpu (EPYC (avx2), EPYC (avx512_bf16))" in line
    assert "bfloat16 (emulated, multiplied)" in line
    assert "PyTorch" not in line
