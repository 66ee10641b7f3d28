"""Evaluate the network of a finished run."""

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cktf.data import (
    FOLDER_PREFIX,
    TABLE_PREFIX,
    Images,
    ImageSet,
    Loader,
    ReadOptions,
    get_labels,
    open_dataset,
    resolve_dataset_name,
)
from cktf.engine import (
    Accuracy,
    RuntimeConfig,
    announce,
    default_tensors,
    explain_out_of_memory,
    start_available_runtime,
)
from cktf.engine import evaluate as accuracy_of
from cktf.errors import CheckpointError, DataError, RecipeError, RunFolderError
from cktf.models import is_cktf_weights_file, read_metadata
from cktf.recipes import (
    CUSTOM,
    DataConfig,
    TransferRecipe,
    build_test_loader,
    find_recipe,
    find_weights_file,
    load_run_network,
    load_split,
    parse_any_recipe,
    read_recipe,
)
from cktf.taps import count_logits, eval_mode, fit_memory_format
from cktf.user_paths import expand_user_path
from cktf.workflows.checks import check_labels, warn_if_normalized_twice
from cktf.workflows.inspection import explain_rejected_images
from cktf.workflows.run import Run, find_session_student
from cktf.workflows.unfinished import find_student_weights
from cktf.workflows.user_objects import dataset_name, find_map_style_problems


@default_tensors()
@torch.inference_mode(False)
def evaluate(
    run: str | Path | Run,
    data: Any = None,
    data_dir: str | None = None,
    *,
    network: nn.Module | str | None = None,
    trust_code: bool = False,
    show: bool = False,
) -> tuple[Accuracy, str]:
    """Classify the test images of a data set with a run's network.

    Args:
        run: a run folder, or what `teach` or `distill` returned. Of an unfinished run, the student
            of its last checkpoint is evaluated.
        data: the name of a data set, or a map-style data set of `(image, label)`; by default the
            one that the run was tested on. Of a folder without test images all images count, except
            of the run's own, where they are the fifth of each class that training left out. Of your
            own data set all images count. They are as the run's test images were: in [0, 1] for a
            network by name, which normalizes them itself (PIL images and uint8 are scaled), and
            transformed as they were for a module of your own.
        data_dir: its folder, for example if the run's data has moved; by default the run's own.
        network: of a run that was made in Python: a module, which takes the run's weights, or
            `FILE.py:FUNCTION`, which builds it.
        trust_code: whether the user's own code that builds the network may run.
        show: print which images count.

    Returns:
        The accuracy, and the name of the data set: "custom" for your own.

    Raises:
        CktfError: there is no finished run, or the data does not fit it.
    """
    folder = run.folder if isinstance(run, Run) else expand_user_path(run)
    name = None if data is None else dataset_name(data)
    config, section = load_test_section(folder, None if name == CUSTOM else name, data_dir)
    if name == CUSTOM:
        if problems := find_map_style_problems("data", data):
            raise RecipeError(problems)
        test = data
    else:
        test, name = _load_test(folder, section, name, show), section.test or section.name
    classes = tuple(test.classes) if isinstance(test, ImageSet) else None
    made_here = find_session_student(run) if network is None else None
    if made_here is None:
        weights = find_student_weights(folder.absolute(), trust_code=trust_code)
        network = load_run_network(weights, classes, network, trust_code=trust_code).network
    else:
        network = made_here
    runtime = start_available_runtime(config)
    loader = build_test_loader(test, section.workers)
    with explain_out_of_memory(loader.batch_size, runtime.device), eval_mode(network):
        num_classes = _check_test_data(network, test, loader)
        runtime.to_device(network)
        forward = runtime.autocast()(network)
        accuracy = accuracy_of(forward, loader, num_classes, runtime.device)
    return accuracy, name


def _load_test(run: Path, section: DataConfig, name: str | None, show: bool) -> ImageSet[Images]:
    """Load the test images of a named data set, and say which images count."""
    if section.name == CUSTOM:
        raise RunFolderError(
            f"{run} was trained on a data set made in Python. Name another with --data, or give it "
            "in Python: cktf.evaluate(run, data=…)."
        )
    own = load_test_section(run)[1]
    hold_out = name is None or _is_own_data(own, section, name)
    test = load_split(section, "test", hold_out=hold_out)
    remark = "" if hold_out else _find_training_images(own, section)
    announce(f"{test.name}: {test.describe()}{remark}", show)
    return test


def _check_test_data(network: nn.Module, test: Any, loader: Loader) -> int:
    """Count the logits of a network; DataError if images or labels do not fit it."""
    images = next(iter(loader.epoch(0))).images
    with explain_rejected_images(network, images):
        fit_memory_format(network, images[:2])
        num_classes = count_logits(network, images[:2])
    check_labels("test", get_labels(test), num_classes)
    if warning := warn_if_normalized_twice(network, "network", images):
        announce(warning, show=True)
    return num_classes


def _is_own_data(own: DataConfig, section: DataConfig, data: str) -> bool:
    """Whether a data set that a user names is the run's own; `section` is that of its images."""
    # A folder with its path in its name may have moved.
    if resolve_dataset_name(data) == own.name != FOLDER_PREFIX:
        return True
    folder = _image_folder(section)
    return folder is not None and folder == _image_folder(own)


def _image_folder(section: DataConfig) -> Path | None:
    """The folder of images that a section names, without symbolic links."""
    prefix, _, folder = section.name.partition(":")
    return Path(folder or section.dir or "").resolve() if prefix == FOLDER_PREFIX else None


def _find_training_images(own: DataConfig, section: DataConfig) -> str:
    """Say how many images of a folder or table the run was trained on; empty for none."""
    if not all(s.name.partition(":")[0] in (FOLDER_PREFIX, TABLE_PREFIX) for s in (own, section)):
        return ""
    folders = [f for f in (_image_folder(own), _image_folder(section)) if f is not None]
    if len(folders) == 2:
        one, other = folders
        if not (one.is_relative_to(other) or other.is_relative_to(one)):
            return ""
    files: list[set[str]] = []
    with suppress(DataError, ValueError):  # the run's own images may be gone
        files.append(_list_files(own, "train", hold_out=own.test in (None, own.name)))
        files.append(_list_files(section, "test", hold_out=False))
    trained_on = len(files[0] & files[1]) if len(files) == 2 else 0
    return f"; the run was trained on {trained_on:,} of them" if trained_on else ""


def _list_files(section: DataConfig, split: str, *, hold_out: bool) -> set[str]:
    """The image files of a split, without symbolic links to their folders."""
    read = ReadOptions(
        image_size=32,
        hold_out=hold_out,
        image_column=section.image_column,
        label_column=section.label_column,
    )
    directory = None if section.dir is None else Path(section.dir)
    images = open_dataset(section.name, directory, split, read).stored
    folder_of = lru_cache(os.path.realpath)
    files = set()
    for position in range(len(images)):
        file = images.read(position)
        # Other images are in the table itself.
        if not isinstance(file, Path):
            break
        files.add(os.path.join(folder_of(file.parent), file.name))
    return files


def load_test_section(
    run: Path, data: str | None = None, data_dir: str | None = None
) -> tuple[RuntimeConfig, DataConfig]:
    """Load a run's settings and the section of the data whose test images evaluate it.

    The arguments are those of `evaluate`. CktfError if there is no run.
    """
    recipe = parse_any_recipe(read_recipe(find_recipe(run)))
    section = recipe.labeled if isinstance(recipe, TransferRecipe) else recipe.data
    if section.test == section.name:
        # The test images are the ones held out of the training set.
        section = section.model_copy(update={"test": None})
    # A recipe names folders by their absolute paths.
    data = None if data is None else resolve_dataset_name(data)
    if data is not None and data != (section.test or section.name):
        # A selection of classes stays: the network knows those.
        if data != section.name:
            section = section.model_copy(update={"name": data, "dir": data_dir})
            data_dir = None
        section = section.model_copy(update={"test": None})
    if data_dir is not None and section.name != CUSTOM:
        field = "name" if section.test is None else "test"
        kind, _, folder = str(getattr(section, field)).partition(":")
        moved = {"dir": data_dir}
        if kind == FOLDER_PREFIX and folder:
            moved = {field: resolve_dataset_name(f"{FOLDER_PREFIX}:{data_dir}")}
        section = section.model_copy(update=moved)
    if section.name == CUSTOM:
        return recipe.runtime, section
    # A folder's images decide the size, and may have changed since training.
    size = section.image_size or training_image_size(run)
    return recipe.runtime, section.model_copy(update={"image_size": size})


def training_image_size(run: Path) -> int | None:
    """The side in pixels of the images that a run was trained on; None if it is not recorded."""
    try:
        file = find_weights_file(str(run.absolute()))
    except CheckpointError:
        # An unfinished run.
        return None
    size = read_metadata(file).get("image_size") if is_cktf_weights_file(file) else None
    return int(size[0]) if isinstance(size, list) and len(set(size)) == 1 else None
