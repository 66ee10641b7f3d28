"""`cktf models`, `cktf methods`, `cktf datasets`: the names that options take."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cktf.cli.command import make_command, print_table
from cktf.cli.options import DataDirOption

_MAX_BROKEN_LISTED = 10


@make_command
def models() -> None:
    """List the networks of the library."""
    import torch
    from torch.overrides import TorchFunctionMode

    from cktf.models import create, list_networks

    class WithoutValues(TorchFunctionMode):
        """Leaves weights as they are; on the meta device, drawing them imports a compiler."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            drawn = function in (torch.Tensor.normal_, torch.Tensor.uniform_)
            if drawn or getattr(function, "__module__", "") == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return function(*args, **kwargs)

    rows = []
    for name in list_networks():
        # The meta device takes no memory for the weights.
        with torch.device("meta"), WithoutValues():
            network = create(name, num_classes=10)
        rows.append((name, f"{sum(p.numel() for p in network.parameters()):,}"))
    print_table(["network", ">parameters (10 classes)"], rows)


@make_command
def methods() -> None:
    """List the methods, to be joined with + (cktf+kd), and the presets."""
    from cktf.objectives import METHODS, PRESETS

    # The paper has a line of its own, so that the table fits 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("name, paper", min_width=21)
    table.add_column("reads", max_width=16)
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("unlabeled", no_wrap=True)
    table.add_column("first\nstage", min_width=9)
    for name, method in METHODS.items():
        description = "\n".join(part for part in (method.title, method.paper) if part)
        unlabeled = "yes" if method.accepts_unlabeled() else "no"
        reads = ", ".join(sorted(method.requires))
        weight = f"{method.default_weight:g}"
        table.add_row(name, description, reads, weight, unlabeled, method.first_phase())
    Console().print(table)
    rows = []
    for name, preset in PRESETS.items():
        options = [f"{o}={v}" for values in preset.options.values() for o, v in values.items()]
        rows.append((name, "\n".join([preset.method, *options]), preset.title))
    print_table(["preset", "stands for", "use"], rows)


@make_command
def datasets(
    data: Annotated[
        str | None, typer.Argument(help="A data set to check image by image: imagefolder:DIR.")
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the data sets, or describe one."""
    if data is not None:
        _print_statistics(data, data_dir)
        return
    from cktf.data.registry import DATASETS

    rows = []
    for d in DATASETS.values():
        counts = ("any" if n is None else f"{n:,}" for n in (d.classes, d.train, d.test))
        rows.append((d.name, *counts, d.summary))
    print_table(["data set", ">classes", ">train", ">test", "files"], rows)


def _print_statistics(name: str, directory: Path | None) -> None:
    from cktf.data import compute_split_statistics, list_splits, open_dataset

    splits = [
        compute_split_statistics(open_dataset(name, directory, split))
        for split in list_splits(name, directory)
    ]
    rows = []
    for split in splits:
        class_cells = ("without labels", "", "")
        if split.imbalance is not None:
            smallest, largest = min(split.counts), max(split.counts)
            per_class = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
            class_cells = f"{len(split.classes):,}", per_class, f"{split.imbalance:.2f}"
        trained, broken = f"{split.size}x{split.size}", f"{len(split.broken):,}"
        rows.append((split.split, f"{split.images:,}", *class_cells, split.pixels, trained, broken))
    columns = [
        "split", ">images", ">classes", ">per class", ">largest : smallest", "pixels", "trained at",
        ">broken",
    ]  # fmt: skip
    print_table(columns, rows)
    if splits[0].note:
        print(splits[0].note)
    for split in splits:
        for broken in split.broken[:_MAX_BROKEN_LISTED]:
            print(f"broken: {broken}")
        if len(split.broken) > _MAX_BROKEN_LISTED:
            print(f"broken: {len(split.broken) - _MAX_BROKEN_LISTED:,} more in {split.split}")
