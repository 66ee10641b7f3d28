"""Write docs/performance.md and its plot from what the benchmarks kept in results/performance.

python benchmarks/page.py
"""

import json
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from measure import RESULTS, table

DOCS = RESULTS.parents[1] / "docs"
PLOT = "performance-scaling.svg"
LABELS = {
    "size": "N, samples in the training set",
    "negatives": "K, negatives",
    "dim": "D, length of a row",
    "batch": "B, batch size",
}


def read(name: str) -> dict[str, Any]:
    """What a benchmark kept."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def plot(contrast: dict[str, Any]) -> None:
    """Time of one side against each of N, K, D and B."""
    matplotlib.rcParams["svg.hashsalt"] = "cktf"
    figure, axes = plt.subplots(1, len(LABELS), figsize=(14, 3.4), layout="constrained")
    for axis, (what, label) in zip(axes, LABELS.items(), strict=True):
        for variant, times in contrast["scaling"][what].items():
            axis.loglog(contrast["scaled"][what], times, "o-", label=variant.split()[0])
        axis.set_xlabel(label)
        axis.set_xticks(contrast["scaled"][what], [f"{v:,}" for v in contrast["scaled"][what]])
        axis.xaxis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms, one side, forward + backward")
    axes[0].legend()
    figure.savefig(DOCS / PLOT, metadata={"Date": None})


def steps_of(step: dict[str, Any], level: str = "") -> list[str]:
    """Each pair's steps, and where the time of one goes."""
    parts = []
    for pair, rows in step["tables"].items():
        parts += [
            f"###{level} {' to '.join(pair.split(':'))}",
            table(step["header"], rows),
            "Where a step of `sampled` goes, by PyTorch's profiler:",
            table(*step["profiles"][pair]),
        ]
    return parts


def sections() -> list[str]:
    """The page, part by part."""
    contrast, step, exact, methods, epoch, feeding, allocator = (
        read(name)
        for name in (
            "contrast", "step", "step-float32", "methods", "epoch", "feeding", "allocator",
        )
    )  # fmt: skip
    plot(contrast)
    case = contrast["case"]
    parts = [
        "# Performance",
        "Written by `make benchmarks` from the commands named below: change those, not this page.\n"
        "All times are medians of repeats that take turns within one process; what counts is the\n"
        "ratio within a table. " + f"Machine: {contrast['machine']}.",
        "## The contrastive loss",
        f"`benchmarks/contrast.py`: one anchor side, forward and backward, B={case['batch']}, "
        f"K={case['negatives']}, N={case['size']}, D={case['dim']}.\nThe draw is made once a batch "
        "for all sides (ten of them in CKTF on three stages); memory is that of\na draw and a side "
        "beside the banks.",
        table(contrast["header"], contrast["rows"]),
        "What limits each: `sampled`, the two products with all N rows, then the gather and the "
        "scatter of\nB·K numbers; `all`, the products and B·N exponentials; `shared`, the products "
        "with K rows and\ncopying them; `queue`, the products with M rows. bfloat16 rows halve the "
        "memory everywhere, and save\ntime only where the hardware multiplies them: elsewhere they "
        "are converted block by block.",
        f"![Time of one side against N, K, D and B]({PLOT})",
    ]
    for what, label in LABELS.items():
        rows = [
            [name, *(f"{ms:.1f}" for ms in times)]
            for name, times in contrast["scaling"][what].items()
        ]
        parts += [
            f"Milliseconds by {label}:",
            table(["variant", *(f"{v:,}" for v in contrast["scaled"][what])], rows),
        ]
    parts += [
        "## A training step",
        f"`benchmarks/step.py`, B={step['batch']}, N={step['size']}, K=16384, {step['machine']}.\n"
        "The floor is the teacher's forward pass with the student's forward and backward.",
    ]
    parts += steps_of(step)
    parts += [
        "### With networks in float32\n\nAs the papers compute, which makes the floor higher, by "
        f"`benchmarks/step.py --precision float32`, {exact['machine']}.\nA step cannot be "
        "sooner than its floor: ratios below 1 tell how much the machine's speed varied.",
        *steps_of(exact, "#"),
    ]
    pair = " to ".join(step["scaled_pair"].split(":"))
    parts += [
        f"### By the number of samples\n\nMilliseconds of a whole step of {pair} by N:",
        table(*step["scaled"]),
        "What limits it: the networks, but for a small pair; then ten sides (eight on two stages, "
        "twelve on four),\nof which each multiplies the batch with every row twice, and gathers "
        "and scatters B·K numbers. A form\nof `sampled` with these products cannot come below the "
        "last line of its profile. `batch` has none of\nthem; what it takes over the floor is the "
        "maps of the modules, normalized and pooled, and the heads.",
        "## Every method",
        f"`benchmarks/methods.py`: a step of each method, alone and with CKTF added, for "
        f"{' to '.join(methods['pair'].split(':'))}, B={methods['batch']},\nover a step of the "
        "student alone (16384 negatives drawn once for the batch). Memory is that of tensors.",
        table(*methods["steps"]),
        "The losses alone, forward and backward (KDSVD: forward), against the formulation of the "
        "published results,\nwhich the tests keep.",
        table(*methods["losses"]),
        "What limits it: the teacher's pass; then KDSVD's decompositions, NST's products, and "
        "the passes of AT,\nVID and FT over whole maps.",
        "## Whole epochs",
        f"`benchmarks/epoch.py`: wrn_16_2 to resnet8 on {epoch['images']:,} images of CIFAR-10, "
        "loading, augmentation,\nprogress and records included, against the same steps on one "
        "batch that is there already.",
        table(epoch["header"], epoch["rows"]),
        "What limits it: the batched crop-and-flip, which is the same for every method.",
        "## Loading alone",
        f"`benchmarks/feeding.py`: {feeding['images']:,} images of CIFAR-10, as they are and as "
        "JPEGs of 256 pixels, in batches of\n"
        f"{feeding['batch']} with augmentation, {feeding['workers']} workers. The usual is "
        "torchvision's data set and transforms, an image at a time,\nin PyTorch's `DataLoader`.",
        table(feeding["header"], feeding["rows"]),
        "What limits it: from memory, the random crop of each image; streamed, decoding and "
        "scaling.",
        "## Freed memory",
        "`benchmarks/allocator.py`: steps on the CPU in a process that keeps what its tensors "
        "free, as `cktf` has it\nwith glibc, over steps where the C library returns it to the "
        "system, which maps and zeroes its pages\nanew in every step. "
        f"{allocator['rounds']} processes of each kind in turn, {allocator['machine']}.",
        table(allocator["header"], allocator["rows"]),
        "What limits it: the fewer pages a step has for its time, the less there is to gain; the "
        "process is the\nlarger for what lies free. Set `MALLOC_TRIM_THRESHOLD_` to choose "
        "otherwise.",
    ]
    return parts


if __name__ == "__main__":
    (DOCS / "performance.md").write_text("\n\n".join(sections()) + "\n")
