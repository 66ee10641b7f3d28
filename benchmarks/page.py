"""Write docs/performance.md and its plot from the records of the benchmarks in results/performance.

python benchmarks/page.py
"""

import json
from typing import Any

import matplotlib
from gpu import CHECKS
from gpu_checks.tables import documentation
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
    """Read a benchmark's record."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


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
        "`make benchmarks` writes this page from the commands named below: change those, not the "
        "page.\nTimes are medians of repeats; the rows of a table take turns within one process. "
        "Compare ratios\nwithin a table. Machine: "
        f"{contrast['machine']}.",
        "## The contrastive loss",
        f"`benchmarks/contrast.py`: one anchor side, forward and backward, B={case['batch']}, "
        f"K={case['negatives']}, N={case['size']}, D={case['dim']}.\nOne draw serves all anchor "
        "sides of a batch: ten in CKTF on three stages. Memory is that of a draw and a\nside, "
        "without the banks.",
        table(contrast["header"], contrast["rows"]),
        "What takes the time: in `sampled`, the two products with all N rows, then the gather and "
        "the scatter of\nB·K numbers; in `all`, the products and B·N exponentials; in `shared`, "
        "the products with K rows and\ncopying these; in `queue`, the products with its M rows. "
        "bfloat16 rows halve the memory of the banks.\nThey save time only where the hardware "
        "multiplies bfloat16: elsewhere they are converted in blocks.",
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
        "### With networks in float32\n\nAs in the papers; the networks, and so the floor, take "
        f"longer. `benchmarks/step.py --precision float32`,\n{exact['machine']}.\nNo step is "
        "faster than its floor: ratios below 1 show how much the machine's speed varied.",
        *steps_of(exact, "#"),
    ]
    pair = " to ".join(step["scaled_pair"].split(":"))
    parts += [
        f"### By the number of samples\n\nMilliseconds of a whole step of {pair} by N:",
        table(*step["scaled"]),
        "What takes the time: the networks, except for small pairs; then the anchor sides (eight "
        "on two stages, ten\non three, twelve on four), each of which in `sampled` multiplies the "
        "batch with every row twice, and\ngathers and scatters B·K numbers. While it computes "
        "these products, `sampled` cannot be faster than the\nlast line of its profile. `batch` "
        "has none of them: it adds only the maps of the modules, normalized\nand pooled, and the "
        "heads.",
        "## Every method",
        f"`benchmarks/methods.py`: a step of each method, alone and with CKTF added, for "
        f"{' to '.join(methods['pair'].split(':'))}, B={methods['batch']},\ncompared "
        "with a step of the student alone. 16384 negatives are drawn once for the batch.\n"
        "Memory is that of tensors.",
        table(*methods["steps"]),
        "The losses alone, forward and backward (KDSVD: forward only), compared with the published "
        "formulation,\nwhich the tests hold as a reference.",
        table(*methods["losses"]),
        "What takes the time: the teacher's forward pass; then KDSVD's decompositions, NST's "
        "products, and the passes\nof AT, VID and FT over whole maps.",
        "## Whole epochs",
        f"`benchmarks/epoch.py`: wrn_16_2 to resnet8 on {epoch['images']:,} images of CIFAR-10, "
        "with loading, augmentation,\nprogress and records, compared with the same steps on one "
        "batch in memory.",
        table(epoch["header"], epoch["rows"]),
        "What takes the rest of the time: the batched crop-and-flip, the same for every method.",
        "## Loading alone",
        f"`benchmarks/feeding.py`: {feeding['images']:,} images of CIFAR-10, as they are and as "
        "JPEGs of 256 pixels, in batches of\n"
        f'{feeding["batch"]} with augmentation and {feeding["workers"]} workers. "usual" is '
        "torchvision's data set and transforms, image by image,\nin PyTorch's `DataLoader`.",
        table(feeding["header"], feeding["rows"]),
        "What takes the time: from memory, the random crop of each image; streamed, decoding and "
        "scaling.",
        "## Freed memory",
        "`benchmarks/allocator.py`: steps on the CPU in a process that keeps freed memory, as "
        "`cktf` does with glibc,\ncompared with steps after which the C library returns it to the "
        "system, which maps and zeroes its pages\nagain in the next step. "
        f"{allocator['rounds']} processes of each kind in turn, {allocator['machine']}.",
        table(allocator["header"], allocator["rows"]),
        "The gain is smaller for steps that map few pages for their time. The process stays as "
        "large as its largest step.\nSet the environment variable `MALLOC_TRIM_THRESHOLD_` to "
        "choose otherwise.",
        documentation(read("gpu") if (RESULTS / "gpu.json").exists() else None, CHECKS),
        *gpu_steps(read("gpu-steps")),
        *contrast_kernel(read("contrast-kernel")),
    ]
    return parts


def gpu_steps(record: dict[str, Any]) -> list[str]:
    """Steps kernel by kernel, and replayed as a CUDA graph."""
    columns = {
        "step": "step", "batch": "B", "mode": "mode", "ms": "ms", "host_ms": "host ms",
        "kernels": "kernels", "images_per_second": "images/s",
    }  # fmt: skip
    rows = [[row.get(name, "") for name in columns] for row in record["rows"]]
    return [
        "### First steps measured\n\n"
        f"{record['machine']}, commit {record['commit']}: bare steps of "
        f"{' to '.join(record['networks'])} in {record['precision']}, N={record['samples']:,}, "
        f"K={record['negatives']:,},\nbefore contrast had its kernel and KDSVD its new vectors. "
        "`graph` replays the captured step, with a fused optimizer. At a\nbatch of 64 the host, "
        "which takes 35 to 50 microseconds for a kernel there, holds the GPU back seven to ten "
        "times.\nWith `torch.compile`, and through whole epochs: not yet measured. The aim of "
        "60,000 images/s at a batch of 64 is not\nreached by the graph alone: networks in "
        "kernels of 5 microseconds take 2.2 ms.",
        table(list(columns.values()), rows),
    ]


def contrast_kernel(record: dict[str, Any]) -> list[str]:
    """Loss and gradient of contrast by blocks and by the kernel, and its cuts."""
    return [
        "### The kernel of contrast\n\n"
        f"`benchmarks/contrast_kernel.py`, {record['device']}, torch {record['torch']}, commit "
        f"{record['commit']}: milliseconds for ten sides of D=128.\nThe cuts in use since then "
        "are the fastest of the second table.",
        table(record["header"], record["rows"]),
        table(record["cut_header"], record["cuts"]),
    ]


if __name__ == "__main__":
    (DOCS / "performance.md").write_text("\n\n".join(sections()) + "\n")
