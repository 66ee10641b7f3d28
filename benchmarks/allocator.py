"""Time of a step where the C library keeps freed memory, over one where it returns it.

    python benchmarks/allocator.py [--rounds 3] [--repeats 5]

Each measurement is a process of its own, since the choice is for good; both kinds take turns.
Forward passes as of a teacher, and training steps; one thread. Peak memory is of the process.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch
from measure import alternate, keep, machine, median_ratio, table

from cktf.engine import peak_memory_mb
from cktf.engine.allocator import keep_freed_memory
from cktf.models import build_network, parse_network_spec

# Network, batch, size of images, whether it is trained.
STEPS = {
    "wrn_16_2, forward": ("wrn_16_2", 64, 32, False),
    "resnet8": ("resnet8", 64, 32, True),
    "torchvision's resnet18": ("torchvision:resnet18", 4, 224, True),
    "torchvision's mobilenet_v3_large": ("torchvision:mobilenet_v3_large", 8, 224, True),
}
CLASSES, WARMUP = 10, 3


def measure(what: str, kept: bool, repeats: int) -> dict[str, float]:
    """Median ms, pages the system mapped in a step, and peak MiB; in this process."""
    torch.set_num_threads(1)
    if kept and not keep_freed_memory():
        raise SystemExit("this C library does not keep freed memory")
    line, batch, size, trained = STEPS[what]
    network = build_network(parse_network_spec(line), CLASSES).network
    network.train(trained).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        with torch.set_grad_enabled(trained):
            loss = network(images).square().sum()
        if trained:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for _ in range(WARMUP):
        step()
    before = _pages()
    (times,) = alternate({what: step}, repeats, warmup=0).values()
    return {
        "ms": 1000 * statistics.median(times),
        "pages": (_pages() - before) / repeats,
        "MiB": peak_memory_mb(torch.device("cpu")),
    }


def _pages() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def in_process(what: str, kept: bool, repeats: int) -> dict[str, float]:
    """The same, in a process of its own."""
    given = ["--one", what, "--repeats", str(repeats), *(["--kept"] if kept else [])]
    done = subprocess.run(
        [sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(what: str, rounds: int, repeats: int) -> list[Any]:
    """A line of the table."""
    turns = [[in_process(what, kept, repeats) for kept in (False, True)] for _ in range(rounds)]
    returned, kept = zip(*turns, strict=True)

    def both(name: str) -> list[str]:
        return [f"{statistics.median(one[name] for one in f):.0f}" for f in (returned, kept)]

    ratio = median_ratio([one["ms"] for one in kept], [one["ms"] for one in returned])
    return [what, *both("ms"), f"{ratio:.2f}", *both("pages"), *both("MiB")]


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.kept, args.repeats)))
        return
    print(machine())
    header = [
        "step", "returned, ms", "kept, ms", "kept : returned", "returned, pages", "kept, pages",
        "returned, MiB", "kept, MiB",
    ]  # fmt: skip
    rows = [row(what, args.rounds, args.repeats) for what in STEPS]
    print(table(header, rows))
    keep("allocator", {"rounds": args.rounds, "header": header, "rows": rows})


if __name__ == "__main__":
    main()
