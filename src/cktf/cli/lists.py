"""`cktf models`, `cktf methods`, `cktf datasets`: what can be named."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def _print(columns: dict[str, str], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=box.SIMPLE)
    for name, side in columns.items():
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def models() -> None:
    """List the networks of the library."""
    import torch

    from cktf.models import create, names

    rows = []
    for name in names():
        # Counted without memory for the weights.
        with torch.device("meta"):
            network = create(name, num_classes=10)
        rows.append((name, f"{sum(p.numel() for p in network.parameters()):,}"))
    _print({"network": "left", "parameters (10 classes)": "right"}, rows)


def methods() -> None:
    """List the methods; join them with +, for example cktf+kd."""
    from cktf.objectives import METHODS

    rows = [
        (
            m.name,
            m.title,
            m.paper,
            ", ".join(m.reads),
            f"{m.weight:g}",
            "yes" if m.takes_unlabelled else "no",
            m.first_stage,
        )
        for m in METHODS.values()
    ]
    columns = {
        "method": "left",
        "name": "left",
        "paper": "left",
        "reads": "left",
        "weight": "right",
        "without labels": "left",
        "first stage": "left",
    }
    _print(columns, rows)


def datasets() -> None:
    """List the data sets."""
    from cktf.data import DATASETS

    rows = [
        (d.name, f"{d.classes}", f"{d.train:,}", f"{d.test:,}", d.summary)
        for d in DATASETS.values()
    ]
    columns = {
        "data set": "left",
        "classes": "right",
        "train": "right",
        "test": "right",
        "files": "left",
    }
    _print(columns, rows)
