"""Dense contrast on a GPU: the Triton kernel against the blocks, and how to cut its work.

    python benchmarks/contrast_kernel.py [--device cuda] [--seconds 40] [--small]

Ten anchor sides, as of CKTF with five pairs, and D = 128: 16,384 rows of an index in a bank of
50,000 (`shared`), and the whole bank (`all`). The first table is of loss and gradient by
`contrast_losses`, called from Python ("eager") and as a CUDA graph, which leaves the GPU's own
time. The second is of the kernel alone, in a graph, with its largest relative error against
float64; of each cut the best number of programs. After `--seconds` no new cut is tried. The last
line is everything as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from measure import table
from torch import Tensor
from torch.nn import functional as F

from cktf.functional.contrast import Candidates, contrast_losses, without_kernel
from cktf.functional.critics import NCECritic
from cktf.functional.dense_kernel import Tiles, choose_tiles, dense_sums

SIDES, DIM, ROWS, TAU = 10, 128, 50_000, 0.1
BATCHES, PROGRAMS = (64, 256, 1024), (1, 2, 4, 8)
FLOAT32_CUTS = (
    Tiles(32, 64, 8, 2), Tiles(32, 64, 8, 3, precision="bf16x6"),
    Tiles(32, 32, 4, 3, precision="bf16x6"), Tiles(64, 32, 8, 3, precision="bf16x6"),
    Tiles(64, 32, 8, 2, precision="ieee"), Tiles(16, 32, 4, 3),
    Tiles(64, 16, 4, 3, precision="bf16x6"), Tiles(32, 32, 8, 3, precision="bf16x6"),
    Tiles(32, 32, 4, 2, precision="ieee"), Tiles(64, 32, 8, 2),
)  # fmt: skip
BFLOAT16_CUTS = (
    Tiles(64, 64, 8, 3), Tiles(64, 32, 4, 3), Tiles(64, 64, 4, 3), Tiles(32, 64, 4, 3),
    Tiles(128, 64, 8, 3), Tiles(32, 64, 8, 3), Tiles(64, 64, 4, 2),
)  # fmt: skip
CUTS = {torch.float32: FLOAT32_CUTS, torch.bfloat16: BFLOAT16_CUTS}
# An H100's: bytes a second, and operations a second by type of the keys.
BANDWIDTH, PEAK = 3e12, {torch.float32: 130e12, torch.bfloat16: 800e12}
Case = dict[str, Tensor]


def build(device: str, dtype: torch.dtype, batch: int, rows: int, drawn: int | None) -> Case:
    """Anchors and their positives, keys, ids of a hundred classes, and rows that are read."""
    torch.manual_seed(0)
    key_index = torch.randint(rows, (drawn,)) if drawn else None
    case = {
        "anchor": F.normalize(torch.randn(SIDES, batch, DIM), dim=-1),
        "positive": F.normalize(torch.randn(SIDES, batch, DIM), dim=-1),
        "keys": F.normalize(torch.randn(SIDES, rows, DIM), dim=-1).to(dtype),
        "anchor_ids": torch.randint(100, (batch,)),
        "key_ids": torch.randint(100, (drawn or rows,)),
        "log_normalizer": torch.full((SIDES,), float(rows) * 1.5).log(),
    }
    if key_index is not None:
        case["key_index"] = key_index
    return {name: value.to(device) for name, value in case.items()}


def step_of(case: Case) -> Callable[[], Tensor]:
    """Loss and gradient, with the candidates of the batch."""
    anchor = case["anchor"].requires_grad_()
    rows = case["keys"].shape[1]
    negatives = min(16384, rows)

    def step() -> Tensor:
        candidates = Candidates(case["anchor_ids"], case["key_ids"], negatives)
        critic = NCECritic(case["log_normalizer"], negatives, rows)
        losses = contrast_losses(
            anchor, case["positive"], case["keys"], candidates, TAU, critic, case.get("key_index")
        )
        return torch.autograd.grad(losses.sum(), anchor)[0]

    return step


def kernel_of(case: Case, tiles: Tiles) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """The kernel alone, and the sums over its programs."""
    rows = case["anchor"].detach() / TAU
    return lambda: dense_sums(
        rows, case["keys"], case["anchor_ids"], case["key_ids"],
        key_index=case.get("key_index"), shift=case["log_normalizer"], tiles=tiles,
    )  # fmt: skip


def time_of(case: Case, tiles: Tiles, device: str) -> float:
    """Milliseconds of the kernel, in a graph."""
    return milliseconds(captured(kernel_of(case, tiles), device), device)


def milliseconds(step: Callable[[], object], device: str, calls: int = 20) -> float:
    """Median over three measurements of so many calls."""
    step()
    if device == "cpu":
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1e3
    times: list[float] = []
    for _ in range(3):
        first, last = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        first.record()
        for _ in range(calls):
            step()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / calls)
    return statistics.median(times)


def captured(step: Callable[[], object], device: str) -> Callable[[], object]:
    """The step as a CUDA graph."""
    if device == "cpu":
        return step
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def error_of(case: Case, tiles: Tiles) -> float:
    """Largest relative error of the sums, and of the weighted keys by a row's largest."""
    found, found_keys, _ = kernel_of(case, tiles)()
    worst = 0.0
    for side in range(SIDES):
        index = case.get("key_index")
        keys = case["keys"][side] if index is None else case["keys"][side][index]
        rows = case["anchor"][side].detach() / TAU
        x = rows.to(keys.dtype).double() @ keys.double().T - case["log_normalizer"][side]
        x = x.masked_fill(case["anchor_ids"][:, None] == case["key_ids"], -torch.inf)
        total, weighted = F.softplus(x).sum(-1), x.sigmoid() @ keys.double()
        largest = weighted.abs().amax(-1, keepdim=True)
        errors = ((found[side] - total) / total, (found_keys[side] - weighted) / largest)
        worst = max(worst, *(float(error.abs().max()) for error in errors))
    return worst


def floor(case: Case) -> float:
    """Milliseconds that no kernel on an H100 can fall below."""
    sides, batch, dim = case["anchor"].shape
    keys = case["keys"]
    numbers = sides * len(case["key_ids"]) * dim
    seconds = max(numbers * keys.element_size() / BANDWIDTH, 4 * batch * numbers / PEAK[keys.dtype])
    return seconds * 1e3


def compare(cases: dict[tuple[str, str, str], Case], device: str) -> list[list[object]]:
    """Rows of the first table."""
    rows: list[list[object]] = []
    for name, case in cases.items():
        step = step_of(case)
        with without_kernel():
            blocks = [milliseconds(s, device) for s in (step, captured(step, device))]
        kernel = [milliseconds(s, device) for s in (step, captured(step, device))]
        cells = [f"{ms:.3f}" for ms in (*blocks, *kernel)]
        rows.append([*name, *cells, f"{blocks[1] / kernel[1]:.1f}", f"{floor(case):.3f}"])
    return rows


def sweep(
    cases: dict[tuple[str, str, str], Case], device: str, end: float
) -> Iterator[list[object]]:
    """Rows of the second table, of the cases that read an index; the cut in use comes first."""
    for place in range(max(map(len, CUTS.values()))):
        for name, case in cases.items():
            cuts = CUTS[case["keys"].dtype]
            if "key_index" not in case or place >= len(cuts) or time.perf_counter() > end:
                continue
            tiles = cuts[place]
            used = replace(choose_tiles(DIM, case["keys"].dtype), programs=tiles.programs) == tiles
            try:
                times = {n: time_of(case, replace(tiles, programs=n), device) for n in PROGRAMS}
                error = f"{error_of(case, tiles):.1e}" if name[1] == str(BATCHES[0]) else ""
            except Exception as raised:  # one that does not compile or fit is a line of the table
                yield [*name, cut(tiles), type(raised).__name__, "", "", ""]
                continue
            best = min(times, key=lambda n: times[n])
            yield [*name, cut(tiles), f"{times[best]:.3f}", best, error, "in use" if used else ""]


def cut(tiles: Tiles) -> str:
    """Anchors × keys, warps, stages, precision."""
    return f"{tiles.anchors}×{tiles.keys} {tiles.warps}w {tiles.stages}s {tiles.precision}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--small", action="store_true", help="few keys, to try the script")
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    batches, rows, drawn = ((3,), 40, 20) if args.small else (BATCHES, ROWS, 16384)
    cases = {
        (str(dtype).removeprefix("torch."), str(batch), str(index or rows)): build(
            args.device, dtype, batch, rows, index
        )
        for dtype in CUTS
        for batch in batches
        for index in (drawn, None)
    }
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {SIDES} sides, D = {DIM}")
    header = ["keys", "batch", "read", "blocks, eager", "graph", "kernel, eager", "graph",
              "blocks : kernel", "floor"]  # fmt: skip
    found = compare(cases, args.device)
    print(table(header, found), flush=True)
    cuts = list(sweep(cases, args.device, end))
    cut_header = ["keys", "batch", "read", "cut", "ms", "programs", "error", ""]
    print(table(cut_header, cuts))
    print(json.dumps({"device": name, "header": header, "rows": found,
                      "cut_header": cut_header, "cuts": cuts}))  # fmt: skip


if __name__ == "__main__":
    main()
