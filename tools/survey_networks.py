"""How many of timm's architectures are understood without explicit taps.

    python tools/survey_networks.py [--out FILE]

Takes the smallest network of every family (module) of timm that classifies, with fresh weights and
at its own size of images, and looks where its features are, as `cktf inspect` does.
"""

import argparse
import re
from pathlib import Path

import timm
import torch

from cktf.errors import CktfError
from cktf.workflows import inspect

# Names that promise a small network, so that few have to be counted.
_SMALL = re.compile(r"atto|femto|pico|nano|tiny|xx?s|xt|small|_s$|b0|18|micro|lite|_t$|050|_x1$")
_TRIED = 6


def smallest(family: str) -> str | None:
    """The network of a family with the fewest parameters, among those that promise to have few."""
    names = timm.list_models(module=family, exclude_filters=["*_in21k*", "test_*"])
    likely = [name for name in names if _SMALL.search(name)] or names
    counts = {}
    for name in sorted(likely, key=len)[:_TRIED]:
        with torch.device("meta"):
            try:
                network = timm.create_model(name)
            except (RuntimeError, NotImplementedError):
                continue
        counts[name] = sum(p.numel() for p in network.parameters())
    return min(counts, key=lambda name: counts[name]) if counts else None


def look(name: str) -> tuple[bool, str]:
    """Whether a network is understood, and its stages or the message."""
    torch.manual_seed(0)
    described = timm.get_pretrained_cfg(name, allow_unregistered=True)
    assert described is not None
    channels, height, width = described.input_size
    try:
        found = inspect(f"timm:{name}", (channels, height, width))
    except CktfError as error:
        return False, str(error)
    shapes = ", ".join("x".join(map(str, s.shape[1:])) for s in found.features.stages)
    return True, shapes


def main() -> None:
    """Look at one network after the other; print as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    lines, understood = [], 0
    for family in timm.list_modules():
        name = smallest(family)
        if name is None:
            continue
        good, text = look(name)
        understood += good
        lines.append(f"{'ok ' if good else 'NOT'} {family:20} {name:36} {text}")
        print(lines[-1], flush=True)
    lines.append(f"understood: {understood} of {len(lines)} families; timm {timm.__version__}")
    print(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
