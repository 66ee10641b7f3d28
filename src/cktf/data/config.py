"""Settings of the images that a run trains on."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from cktf.config import Section
from cktf.data.registry import resolve_dataset_name

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class DataConfig(Section):
    """Which images a run reads, and how it feeds them.

    Attributes:
        name: a data set of the library, a folder of images, or `custom` for a user's own.
        dir: its folder, where it needs one.
        test: another data set, of the same classes, for the test images; by default its own.
        augment: crop and flip training images; a user's own data set augments itself.
        batch_size: images per step; 2 or more, since BatchNorm and contrast compare images.
        resized_crops: augment by random parts of 8 to 100 % of an image's area, scaled to its size,
            as of data sets that do not fit in memory; images are then read batch by batch.
        views: augmentations of each image, the same in every run, which epochs take in turn; 0 for
            new ones in every epoch.
        workers: processes that load a user's own data set, or a named one that is too large for
            memory.
        image_size: pixels of a side; by default the data set's own, and for folders of images of
            many sizes what suits the training images.
        channels: 3, or 1 for gray images.
        skip_broken: leave out images that cannot be read, instead of stopping.
        image_column, label_column: columns of a data set `hf:` or `table:`; by default those of the
            types Image and ClassLabel, else those called image or path, and label or class.
        labels: whether labels are read; without them there is no cross-entropy and no accuracy.
        classes: names of the classes to use, in that order; empty for all.
        per_class: number of training images of each class, drawn by seed; None for all.
        validation: fraction of each class held out of the training images; the weights of the epoch
            that is best on these images are kept. Without it, validation images that the data set
            has beside test images choose the epoch: DIR/val of an image folder.
    """

    name: Name = "fashion-mini"
    dir: str | None = None
    test: Name | None = None
    augment: bool = True
    resized_crops: bool = False
    views: int = Field(0, ge=0)
    batch_size: int = Field(64, ge=2)
    workers: int = Field(0, ge=0, le=1024)
    image_size: int | None = Field(None, ge=8, le=1024)
    channels: Literal[1, 3] = 3
    skip_broken: bool = False
    image_column: str | None = None
    label_column: str | None = None
    labels: bool = True
    classes: list[str] = Field([])
    per_class: int | None = Field(None, ge=1)
    validation: float = Field(0.0, ge=0, lt=1)

    @field_validator("name", "test")
    @classmethod
    def _absolute(cls, name: str | None) -> str | None:
        """Make a folder in the name absolute, so that it means the same wherever it is read."""
        # A folder may be called like the word for a user's own data set.
        return name if name in (None, "custom") else resolve_dataset_name(name)
