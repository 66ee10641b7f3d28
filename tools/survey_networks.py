"""Count the architectures of timm whose features are found without explicit taps.

    python tools/survey_networks.py [--out FILE]

Builds the smallest classifier of every family (module) of timm with fresh weights and finds its
features at its own image size, as `cktf inspect` does.
"""

import argparse
import re
from pathlib import Path

import timm
import torch

from cktf.errors import CktfError
from cktf.workflows import inspect

# Parts of the names of small networks, so that few have to be built.
_SMALL_NAME = re.compile(
    r"atto|femto|pico|nano|tiny|xx?s|xt|small|_s$|b0|18|micro|lite|_t$|050|_x1$"
)
_MAX_CANDIDATES = 6


def find_smallest(family: str) -> str | None:
    """Find the network with the fewest parameters among a family's likely candidates."""
    names = timm.list_models(module=family, exclude_filters=["*_in21k*", "test_*"])
    small = [name for name in names if _SMALL_NAME.search(name)] or names
    counts = {}
    for name in sorted(small, key=len)[:_MAX_CANDIDATES]:
        with torch.device("meta"):
            try:
                network = timm.create_model(name)
            except (RuntimeError, NotImplementedError):
                continue
        counts[name] = sum(p.numel() for p in network.parameters())
    return min(counts, key=lambda name: counts[name]) if counts else None


def inspect_network(name: str) -> tuple[bool, str]:
    """Inspect a network: whether its features are found, and its stages or the error."""
    torch.manual_seed(0)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    assert config is not None
    channels, height, width = config.input_size
    try:
        inspection = inspect(f"timm:{name}", (channels, height, width))
    except CktfError as error:
        return False, str(error)
    shapes = ", ".join("x".join(map(str, s.shape[1:])) for s in inspection.features.stages)
    return True, shapes


def main() -> None:
    """Inspect a network of every family and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    lines, count = [], 0
    for family in timm.list_modules():
        name = find_smallest(family)
        if name is None:
            continue
        found, text = inspect_network(name)
        count += found
        lines.append(f"{'ok ' if found else 'NOT'} {family:20} {name:36} {text}")
        print(lines[-1], flush=True)
    lines.append(f"understood: {count} of {len(lines)} families; timm {timm.__version__}")
    print(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
