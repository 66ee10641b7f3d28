"""Accuracy of a finished run's network, from its folder."""

from dataclasses import replace
from pathlib import Path

import torch

from cktf.data import FOLDER_PREFIX, resolve_dataset_name
from cktf.engine import Accuracy, Training, device_of, enough_memory, in_precision, to_device
from cktf.engine import evaluate as accuracy_of
from cktf.errors import RunFolderError
from cktf.models import is_cktf_weights_file, read_metadata
from cktf.recipes import (
    CUSTOM,
    DataSection,
    TransferRecipe,
    build_test_loader,
    find_recipe,
    find_weights_file,
    load_split,
    load_teacher,
    parse_any_recipe,
    read_recipe,
)
from cktf.user_paths import expand_user_path


def evaluate(
    run: str | Path,
    data: str | None = None,
    data_dir: str | None = None,
    *,
    trust_code: bool = False,
) -> tuple[Accuracy, str]:
    """Classify the test images of a data set with a run's network.

    Args:
        run: a run folder.
        data: a named data set; by default the one that the run was tested on. Of a folder without
            test images, it is the fifth of each class that training leaves out.
        data_dir: its folder; by default the run's own. A run's folder of images may have moved
            there.
        trust_code: whether the user's own code, by which the run's network is built, may run.

    Returns:
        The accuracy, and the name of the data set whose test images it is of.

    Raises:
        CktfError: no finished run, or data that does not fit it.
    """
    run = expand_user_path(run)
    training, section = load_test_section(run, data, data_dir)
    if section.name == CUSTOM:
        raise RunFolderError(
            f"{run} was trained on a data set made in Python. Name another with --data, or measure "
            "it there with cktf.engine.evaluate."
        )
    test = load_split(section, "test")
    loader, classes = build_test_loader(test, section.workers), tuple(test.classes)
    where = str(run.absolute())
    network = load_teacher(where, classes, trust_code=trust_code).network
    if not torch.cuda.is_available():
        # A run from a machine with a GPU can be measured on one without.
        training = replace(training, device="cpu")
    device = device_of(training)
    with enough_memory(loader.batch_size, device):
        to_device(network, training, device)
        forward = in_precision(network.eval(), training.precision, device)
        accuracy = accuracy_of(forward, loader, len(classes), device)
    return accuracy, section.test or section.name


def load_test_section(
    run: Path, data: str | None = None, data_dir: str | None = None
) -> tuple[Training, DataSection]:
    """How a run computes, and the data whose test images are its own, or those of another set.

    Raises:
        CktfError: no run.
    """
    recipe = parse_any_recipe(read_recipe(find_recipe(run)))
    section = recipe.labeled if isinstance(recipe, TransferRecipe) else recipe.data
    if section.test == section.name:
        # Held-out images stay those that were held out.
        section = section.model_copy(update={"test": None})
    # A recipe names folders by their absolute paths.
    data = None if data is None else resolve_dataset_name(data)
    if data is not None and data != (section.test or section.name):
        # Classes that were chosen stay: they are those that the network knows.
        if data != section.name:
            section = section.model_copy(update={"name": data, "dir": data_dir})
            data_dir = None
        section = section.model_copy(update={"test": None})
    if data_dir is not None and section.name != CUSTOM:
        section = _moved(section, data_dir)
    if section.name == CUSTOM:
        return recipe.training(), section
    # Images in a folder decide their size: there may be others by now.
    size = section.image_size or training_image_size(run)
    return recipe.training(), section.model_copy(update={"image_size": size})


def _moved(section: DataSection, data_dir: str) -> DataSection:
    """The same data where it is now."""
    field = "name" if section.test is None else "test"
    kind, _, place = str(getattr(section, field)).partition(":")
    if kind == FOLDER_PREFIX and place:
        return section.model_copy(
            update={field: resolve_dataset_name(f"{FOLDER_PREFIX}:{data_dir}")}
        )
    return section.model_copy(update={"dir": data_dir})


def training_image_size(run: Path) -> int | None:
    """Pixels of a side of the images that a run was trained on; None where it does not say."""
    file = find_weights_file(str(run.absolute()))
    size = read_metadata(file).get("image_size") if is_cktf_weights_file(file) else None
    return int(size[0]) if isinstance(size, list) and len(set(size)) == 1 else None
