"""Samples of a user's data set, each a pair of image and label."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from cktf.data.image_decoding import GRAY, RGB, convert_to_8bit, describe_error
from cktf.errors import CktfError, DataError
from cktf.user_paths import locate_in_user_code

_MAX_CHANNELS = 4


def read_sample(data: Any, position: int) -> Any:
    """Read a sample of a map-style data set.

    Raises:
        DataError: the data set's own code fails.
    """
    try:
        return data[position]
    except CktfError:
        raise
    except Exception as error:  # a user's code raises errors of any type
        line = locate_in_user_code(error)
        where = f" ({line})" if line else ""
        raise DataError(
            f"Sample {original_position(data, position)} of the data set cannot be read: "
            f"{type(error).__name__}: {error}{where}. Correct that code, or leave out the sample."
        ) from error


def original_position(data: Any, position: int) -> int:
    """The position of a sample in the data set of which others are subsets."""
    while isinstance(data, Subset):
        data, position = data.dataset, int(data.indices[position])
    return position


def label_of_sample(sample: Any, position: int) -> int:
    """The class number in a sample, which is a pair of image and label.

    A label may be a whole floating-point number, and may be alone in an array or a list.

    Raises:
        DataError: the sample is no pair, or its label is not the number of a class.
    """
    if not (isinstance(sample, (tuple, list)) and len(sample) == 2):
        pair = ": (sample['image'], sample['label'])" if isinstance(sample, dict) else ""
        raise DataError(
            f"A data set gives (image, label); sample {position} is a {_describe_sample(sample)}. "
            f"Wrap it so that it gives pairs{pair}."
        )
    label = sample[1]
    value = label.tolist() if isinstance(label, np.ndarray | np.generic | Tensor) else label
    while isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    try:
        number = int(value)
        is_class = (isinstance(value, str) or number == value) and 0 <= number < 2**63
    except (TypeError, ValueError, OverflowError):
        is_class = False
    if not is_class:
        raise DataError(
            f"The label of sample {position} is {repr(value)[:200]}; a label is the number of its "
            f"class, from 0. {_advise_on_label(value)}"
        )
    return number


def _describe_sample(sample: Any) -> str:
    kind = type(sample).__name__
    if isinstance(sample, (tuple, list)):
        return f"{kind} of {len(sample)} ({', '.join(type(part).__name__ for part in sample)})"
    if isinstance(sample, dict):
        return f"{kind} with the keys {', '.join(map(str, sample))}"
    return kind


def _advise_on_label(value: Any) -> str:
    """Say what to do about a label that is not the number of a class."""
    if isinstance(value, (tuple, list)):
        if [number for number in value if number != 0] == [1]:
            return "This one is one-hot: give its position, label.argmax()."
        return (
            "Several labels of an image (multi-label), mixed labels and targets of a regression "
            "are not supported: give one class."
        )
    if isinstance(value, float) and math.isfinite(value) and value % 1:
        return "Targets of a regression are not supported: give the number of a class."
    return "Number the classes in the data set, and leave out samples without a class."


def to_tensor(image: Any, position: int) -> Tensor:
    """Convert an image to float32 [C, H, W]; bytes and PIL images are scaled to [0, 1]."""
    is_picture = isinstance(image, Image.Image)
    if is_picture:
        image = _convert_picture(image, position)
    if not isinstance(image, Tensor):
        try:
            array = np.asarray(image)
            array = array[:, :, None] if array.ndim == 2 else array
            if is_picture or not _is_channels_first(array, position):
                array = array.transpose(2, 0, 1)
            image = torch.from_numpy(array.copy())
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"The image of sample {position} is a {type(image).__name__}, not a tensor "
                "[C, H, W], a PIL image or an array [H, W, C]. Convert it in the data set."
            ) from error
    if image.dim() != 3:
        raise DataError(
            f"The image of sample {position} has shape {tuple(image.shape)}; an image is [C, H, W]."
        )
    values: Tensor = image.float()
    if image.dtype == torch.uint8:
        return values / 255
    if not image.is_floating_point():
        raise DataError(
            f"The image of sample {position} is of {image.dtype}: bytes (uint8) are scaled to "
            "[0, 1], floats are taken as they are. Convert it in the data set."
        )
    return values


def _is_channels_first(array: np.ndarray, position: int) -> bool:
    """Whether an array is [C, H, W] and not [H, W, C]; DataError where it may be both."""
    first, _, last = array.shape
    if first in (GRAY, RGB) and last in (GRAY, RGB):
        raise DataError(
            f"The image of sample {position} is an array of shape {array.shape}, which may be "
            "[H, W, C] or [C, H, W]. Give a tensor, which is always [C, H, W]."
        )
    return first in (GRAY, RGB) or first <= _MAX_CHANNELS < last


def _convert_picture(picture: Image.Image, position: int) -> Image.Image:
    """Convert to RGB, or to gray where there are no colors; floats (mode F) stay unchanged."""
    try:
        picture.load()
        if picture.mode == "F":
            return picture
        channels = GRAY if Image.getmodebase(picture.mode) == "L" else RGB
        return convert_to_8bit(picture, channels)
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise DataError(
            f"The image of sample {position} cannot be converted ({describe_error(error)}). "
            "Convert it in the data set."
        ) from error
