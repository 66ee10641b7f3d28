"""Compare every network with its published counterpart in a table.

    python tools/network_parity.py [--out FILE]

Compares parameters, keys, shapes, and the logits for weights and images computed by a formula, with
those of the published code, which tests/facts holds.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_zoo import (  # type: ignore[import-not-found]
    FAMILIES,
    LOGITS,
    NETWORKS,
    build_on_meta,
    build_with_formula_weights,
    published_images,
    published_state,
)

from cktf.models import to_published_keys


def format_row(family: str, name: str) -> str:
    """Compare one network of one family; a row of the table."""
    network = build_on_meta(name)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    shapes_equal = shapes == to_published_keys(published_state(family, name), name)
    parameters = sum(p.numel() for p in network.parameters())
    published = FAMILIES[family][name]["parameters"]
    sizes = [size for f, n, size in LOGITS if (f, n) == (family, name)]
    errors = "; ".join(f"{size} px {logits_difference(family, name, size):.1e}" for size in sizes)
    count = f"{parameters:,}" + ("" if parameters == published else f" (published {published:,})")
    return (
        f"| {name} | {family.removesuffix('_family').upper()} | {count} | {len(shapes)} "
        f"{'equal' if shapes_equal else 'NOT equal'} | {errors or 'not in the facts'} |"
    )


def logits_difference(family: str, name: str, size: int) -> float:
    """Largest absolute difference of the logits from the published ones."""
    with torch.no_grad():
        logits = build_with_formula_weights(family, name)(published_images(size))
    return float((logits - torch.tensor(FAMILIES[family][name][f"logits_{size}"])).abs().max())


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    lines = [
        "| network | family | parameters | keys and shapes | largest difference of logits |",
        "|---|---|---|---|---|",
        *(format_row(family, name) for family, name in NETWORKS),
    ]
    print("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
