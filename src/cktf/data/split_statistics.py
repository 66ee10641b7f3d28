"""Statistics of one split: class counts, image sizes, broken files."""

import statistics
from dataclasses import dataclass

from cktf.data.image_decoding import decode_image, describe_error
from cktf.data.image_set import NO_LABEL
from cktf.data.split_loading import SplitSource


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split.

    Attributes:
        split: the split's name.
        classes: class names.
        counts: images per class; empty for a split without labels.
        images: count of all images, broken ones included.
        sizes: width and height of each readable image, by the shorter side; a single entry where
            all images are stored in one size.
        size: pixels of a side that training uses by default.
        broken: the name of each broken image, with the reason in brackets.
        note: remarks on the files.
    """

    split: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    images: int
    sizes: tuple[tuple[int, int], ...]
    size: int
    broken: tuple[str, ...]
    note: str

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class over those of the smallest; None without labels."""
        if not self.counts:
            return None
        return max(self.counts) / min(self.counts) if min(self.counts) else float("inf")

    @property
    def pixels(self) -> str:
        """The size of all images, or the range of sizes and the median of the shorter sides."""
        if not self.sizes:
            return "none"
        first, last = self.sizes[0], self.sizes[-1]
        if len(set(self.sizes)) == 1:
            return f"{first[0]}x{first[1]}"
        median = statistics.median(min(size) for size in self.sizes)
        return f"{first[0]}x{first[1]} to {last[0]}x{last[1]}, shorter sides {median:g}"


def compute_split_statistics(source: SplitSource) -> SplitStatistics:
    """Decode every image of a split and count what is in it."""
    stored = source.stored

    def measure(position: int) -> tuple[int, int] | str:
        try:
            with stored.open_image(position) as image:
                return decode_image(image).size
        except Exception as error:  # Pillow's decoders raise errors of many types
            return f"{stored.image_name(position)} ({describe_error(error)})"

    measured = [stored.size] if stored.size is not None else list(stored.map_positions(measure))
    sizes = [size for size in measured if not isinstance(size, str)]
    labels = source.labels[source.labels != NO_LABEL]
    counts = labels.bincount(minlength=len(source.classes)).tolist() if len(labels) else []
    return SplitStatistics(
        source.split,
        tuple(source.classes),
        tuple(counts),
        len(stored),
        tuple(sorted(sizes, key=lambda size: (min(size), max(size)))),
        source.size,
        tuple(name for name in measured if isinstance(name, str)),
        source.note,
    )
