"""Comparisons of methods: matrices, their cells and tables, and the published figures."""

from cktf.bench.cells import Cell, cells_of, chosen
from cktf.bench.cost import Cost, cost_key, costs_in, keep_costs, measure, measure_teacher
from cktf.bench.formats import csv_rows, latex, markdown
from cktf.bench.matrix import Matrix, make_matrix, read_matrix, shipped
from cktf.bench.plan import Bench, check_bench
from cktf.bench.published import Published, published
from cktf.bench.results import Result, all_results, kept_matrix, results_in
from cktf.bench.runner import run_bench
from cktf.bench.tables import Comparison, compare

__all__ = [
    "Bench",
    "Cell",
    "Comparison",
    "Cost",
    "Matrix",
    "Published",
    "Result",
    "all_results",
    "cells_of",
    "check_bench",
    "chosen",
    "compare",
    "cost_key",
    "costs_in",
    "csv_rows",
    "keep_costs",
    "kept_matrix",
    "latex",
    "make_matrix",
    "markdown",
    "measure",
    "measure_teacher",
    "published",
    "read_matrix",
    "results_in",
    "run_bench",
    "shipped",
]
