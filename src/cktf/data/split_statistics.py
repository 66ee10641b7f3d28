"""What is in a data set: counts, sizes, balance, broken files."""

import statistics
from dataclasses import dataclass

from cktf.data.image_decoding import decode, describe_error
from cktf.data.image_set import NO_LABEL
from cktf.data.split_loading import SplitSource
from cktf.data.stored_images import StoredImages


@dataclass(frozen=True)
class SplitStatistics:
    """One split, looked at image by image.

    Attributes:
        split: its name.
        classes: names.
        counts: images of each class; empty for a split without labels.
        images: all of them, broken ones included.
        sizes: width and height of each image that can be read, at least the smallest, the one in
            the middle and the largest by their shorter sides.
        size: pixels of a side that training takes unless told otherwise.
        broken: a name and a reason for each image that cannot be read.
        note: what was found beside these.
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
        """Width and height: of all, or the range of them and the median of the shorter sides."""
        if not self.sizes:
            return "none"
        first, last = self.sizes[0], self.sizes[-1]
        if len(set(self.sizes)) == 1:
            return f"{first[0]}x{first[1]}"
        median = statistics.median(min(size) for size in self.sizes)
        return f"{first[0]}x{first[1]} to {last[0]}x{last[1]}, shorter sides {median:g}"


def compute_split_statistics(source: SplitSource) -> SplitStatistics:
    """Look at every image of a split; each is decoded whole."""
    sizes, broken = _look(source.pictures)
    labels = source.labels[source.labels != NO_LABEL]
    counts = labels.bincount(minlength=len(source.classes)).tolist() if len(labels) else []
    return SplitStatistics(
        source.split,
        tuple(source.classes),
        tuple(counts),
        len(source.pictures),
        tuple(sorted(sizes, key=lambda size: (min(size), max(size)))),
        source.size,
        tuple(broken),
        source.note,
    )


def _look(pictures: StoredImages) -> tuple[list[tuple[int, int]], list[str]]:
    if pictures.size is not None:
        return [pictures.size], []

    def look(position: int) -> tuple[int, int] | str:
        try:
            with pictures.open(position) as image:
                return decode(image).size
        except Exception as error:  # decoders let through what they meet
            return f"{pictures.name(position)} ({describe_error(error)})"

    found = list(pictures.each(look))
    sizes = [size for size in found if not isinstance(size, str)]
    return sizes, [name for name in found if isinstance(name, str)]
