"""Data sets by name, batches with their index, batched augmentation."""

from cktf.data.augment import crop_and_flip
from cktf.data.images import ImageSet
from cktf.data.loaders import DatasetLoader, Loader, MemoryLoader, labels_of
from cktf.data.registry import DATASETS, DatasetInfo, dataset_info, load_dataset

__all__ = [
    "DATASETS",
    "DatasetInfo",
    "DatasetLoader",
    "ImageSet",
    "Loader",
    "MemoryLoader",
    "crop_and_flip",
    "dataset_info",
    "labels_of",
    "load_dataset",
]
