"""Every network beside its published twin, as a table.

    python tools/network_parity.py [--out FILE]

Compares parameters, keys and shapes, and the logits for weights and images given by a formula, with
the facts that the tests hold of the published code.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_zoo_families import (  # type: ignore[import-not-found]
    FAMILIES,
    LOGITS,
    NETWORKS,
    on_paper,
    published_images,
    published_state,
    with_published_weights,
)

from cktf.models import to_published_keys


def row(family: str, name: str) -> str:
    """One network of one family."""
    network = on_paper(name)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    same = shapes == to_published_keys(published_state(family, name), name)
    parameters = sum(p.numel() for p in network.parameters())
    published = FAMILIES[family][name]["parameters"]
    sizes = [size for f, n, size in LOGITS if (f, n) == (family, name)]
    errors = "; ".join(f"{size} px {difference(family, name, size):.1e}" for size in sizes)
    count = f"{parameters:,}" + ("" if parameters == published else f" (published {published:,})")
    return (
        f"| {name} | {family.removesuffix('_family').upper()} | {count} | {len(shapes)} "
        f"{'equal' if same else 'NOT equal'} | {errors or 'not in the facts'} |"
    )


def difference(family: str, name: str, size: int) -> float:
    """Largest difference of two images' logits from the published ones."""
    with torch.no_grad():
        logits = with_published_weights(family, name)(published_images(size))
    return float((logits - torch.tensor(FAMILIES[family][name][f"logits_{size}"])).abs().max())


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    lines = [
        "| network | family | parameters | keys and shapes | largest difference of logits |",
        "|---|---|---|---|---|",
        *(row(family, name) for family, name in NETWORKS),
    ]
    print("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
