"""The public names of `cktf.data`, which imports this module at their first use."""

from cktf.data.augment import crop_and_flip
from cktf.data.image_set import (
    NO_LABEL,
    UNLABELED_SPLIT,
    VALIDATION_SPLIT,
    Images,
    ImageSet,
    hash_images,
)
from cktf.data.labels import get_labels, has_stored_labels
from cktf.data.loaders import DatasetLoader, Loader, MemoryLoader, explain_lost_worker
from cktf.data.registry import (
    DATASETS,
    FOLDER_PREFIX,
    HUB_PREFIX,
    TABLE_PREFIX,
    find_hidden_folder,
    get_dataset_info,
    is_among_images,
    list_splits,
    load_dataset,
    load_splits,
    open_dataset,
    resolve_dataset_name,
)
from cktf.data.split_loading import ReadOptions, abbreviate
from cktf.data.split_statistics import compute_split_statistics
from cktf.data.splits import VALIDATION_SEED, describe_class, sample_per_class, split_validation
from cktf.data.streamed_images import StreamedImages
from cktf.data.worker_datasets import derive_seed

__all__ = [
    "DATASETS",
    "FOLDER_PREFIX",
    "HUB_PREFIX",
    "NO_LABEL",
    "TABLE_PREFIX",
    "UNLABELED_SPLIT",
    "VALIDATION_SEED",
    "VALIDATION_SPLIT",
    "DatasetLoader",
    "ImageSet",
    "Images",
    "Loader",
    "MemoryLoader",
    "ReadOptions",
    "StreamedImages",
    "abbreviate",
    "compute_split_statistics",
    "crop_and_flip",
    "derive_seed",
    "describe_class",
    "explain_lost_worker",
    "find_hidden_folder",
    "get_dataset_info",
    "get_labels",
    "has_stored_labels",
    "hash_images",
    "is_among_images",
    "list_splits",
    "load_dataset",
    "load_splits",
    "open_dataset",
    "resolve_dataset_name",
    "sample_per_class",
    "split_validation",
]
