"""A matrix that trains in seconds."""

from cktf.bench import Bench, build_cells, make_matrix, read_results
from cktf.models import create, save_network

CLASSES = ["Bag", "Sneaker"]
TINY = {
    "name": "tiny",
    "data": {"name": "fashion-mini", "per_class": 16, "classes": CLASSES, "batch_size": 8},
    "recipe": {"epochs": 2, "optimizer": {"lr": 0.02}, "checkpoint": {"epochs": 1}},
    "pairs": ["resnet14:resnet8"],
    "methods": {"alone": "ce", "KD": "kd", "CKTF": "cktf"},
    "options": {"cktf": {"negatives": 8}},
    "seeds": [0, 1],
    "baseline": "KD",
}
ONE_CELL = {"methods": {"KD": "kd"}, "seeds": [0]}
TRANSFER = {
    "kind": "transfer", "data": {"name": "fashion-mini", "classes": CLASSES}, "seeds": [0],
    "methods": {"CRD": "crd:1"}, "options": {"crd": {"negatives": 8}}, "baseline": None,
}  # fmt: skip


def save_teacher(path):
    """Save a random resnet14 of two classes."""
    save_network(
        create("resnet14", 2), path, name="resnet14", classes=CLASSES, dataset="fashion-mini"
    )


def make_bench(out, weights=None, matrix=None, **options):
    matrix = make_matrix(TINY | (matrix or {}))
    cells = build_cells(matrix, weights={"resnet14": str(weights)} if weights else None)
    return Bench(matrix, cells, out, out / "results", show=False, **options)


def accuracies(folder):
    return {(r.method, r.seed): r.top1_by_epoch for r in read_results(folder / "results")}
