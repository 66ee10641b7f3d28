"""Data sets by name, batches with their index, batched augmentation."""

from cktf.data.augment import crop_and_flip
from cktf.data.images import NO_LABEL, UNLABELED_SPLIT, Images, ImageSet
from cktf.data.loaders import DatasetLoader, Loader, MemoryLoader, labels_of, states_labels
from cktf.data.reading import BrokenImagesError, Reading
from cktf.data.registry import (
    DATASETS,
    FOLDER,
    HUB,
    DatasetInfo,
    dataset_info,
    load_dataset,
    load_splits,
    located_name,
    open_dataset,
)
from cktf.data.samples import seed_of
from cktf.data.splits import VALIDATION_SEED, few_per_class, split_validation
from cktf.data.streamed import Streamed
from cktf.data.survey import Survey, survey
from cktf.data.views import identity

__all__ = [
    "DATASETS",
    "FOLDER",
    "HUB",
    "NO_LABEL",
    "UNLABELED_SPLIT",
    "VALIDATION_SEED",
    "BrokenImagesError",
    "DatasetInfo",
    "DatasetLoader",
    "ImageSet",
    "Images",
    "Loader",
    "MemoryLoader",
    "Reading",
    "Streamed",
    "Survey",
    "crop_and_flip",
    "dataset_info",
    "few_per_class",
    "identity",
    "labels_of",
    "load_dataset",
    "load_splits",
    "located_name",
    "open_dataset",
    "seed_of",
    "split_validation",
    "states_labels",
    "survey",
]
