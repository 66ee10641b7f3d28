"""The names of `cktf.bench`."""

from cktf.bench.cells import Cell, build_cells, select_cells
from cktf.bench.cost import Cost, cost_key, measure_cell, measure_teacher, read_costs, save_costs
from cktf.bench.formats import csv_rows, markdown
from cktf.bench.matrix import make_matrix, read_matrix, shipped_matrices
from cktf.bench.plan import Bench, check_bench
from cktf.bench.published import published_accuracies
from cktf.bench.results import read_results, results_dir
from cktf.bench.runner import run_bench
from cktf.bench.tables import Comparison, compare

__all__ = [
    "Bench",
    "Cell",
    "Comparison",
    "Cost",
    "build_cells",
    "check_bench",
    "compare",
    "cost_key",
    "csv_rows",
    "make_matrix",
    "markdown",
    "measure_cell",
    "measure_teacher",
    "published_accuracies",
    "read_costs",
    "read_matrix",
    "read_results",
    "results_dir",
    "run_bench",
    "save_costs",
    "select_cells",
    "shipped_matrices",
]
