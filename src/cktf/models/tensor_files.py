"""Files of tensors, read by their content, whatever they are called: safetensors and pickles.

Pickles are loaded with `weights_only=True`, which runs no code. Many programs save options,
measurements or a configuration beside the weights. An object of a class that `weights_only` does
not know is replaced by an `OrderedDict` with its items and attributes; its class is not imported.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cktf.errors import CheckpointError

# safetensors itself reads no longer header.
_MAX_HEADER_BYTES = 100_000_000
_MAX_UNKNOWN_CLASSES = 100

SAVE_STATE = (
    "Where you trust it, save its weights alone: torch.save(model.state_dict(), 'weights.pth')."
)
_DOWNLOAD = "Download or copy it again."
_UNPACK = "Unpack it, and give the file of weights inside."
_CONVERT = (
    "Only weights of PyTorch can be loaded: convert them, and save the state_dict of the PyTorch "
    "network with torch.save."
)
# What files begin with that are taken for weights, and what to do with them.
_FOREIGN_FORMATS = (
    (
        rb"version https://git-lfs",
        "is a Git LFS pointer: it names a file that was not downloaded. Fetch it with git lfs "
        "pull, or download the file itself.",
    ),
    (
        rb"\s*<(!doctype|html|\?xml|head|!--)",
        "is a web page (HTML), not weights: a sign-in, an error or a preview was saved instead. "
        "Download it by its direct link.",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", f"is compressed. {_UNPACK}"),
    (rb"(?s).{257}ustar", f"is a tar archive. {_UNPACK}"),
    (rb"\x89HDF", f"is an HDF5 file, as Keras and TensorFlow write it. {_CONVERT}"),
    (rb"GGUF|ggml|lmgg", f"is a GGUF file, as llama.cpp reads it. {_CONVERT}"),
    (rb"\x93NUMPY", f"is a NumPy array. {_CONVERT}"),
    (rb"(?s).{4}TFL3", f"is a TensorFlow Lite model. {_CONVERT}"),
    (rb"\x08[\x01-\x14][\x12\x3a\x42]", f"is a graph of ONNX or TensorFlow. {_CONVERT}"),
    (
        rb"\x80[\x03-\x05]",
        f"is a pickle of protocol 3 or newer; torch.save writes protocol 2, and weights_only reads "
        f"no other, so it was not opened. {SAVE_STATE}",
    ),
    (rb"[\x81-\x8f][\xa1-\xbf\xd9]", f"is a msgpack file, as Flax (JAX) writes it. {_CONVERT}"),
)
_BOM = b"\xef\xbb\xbf"
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")


def read_tensor_file(path: Path) -> Any:
    """Read what a safetensors or PyTorch file holds; its name decides nothing.

    Raises:
        CheckpointError: no such file, a damaged one, one of another format, or one that needs
            code to be loaded.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}. Give a run folder or a file.")
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if len(head) > 8 and head[8:9] == b"{" and _header_bytes(head) <= _MAX_HEADER_BYTES:
            return load_file(path)
        reason = _explain_archive(path) if head.startswith(b"PK") else _explain_format(head)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is a safetensors file that is damaged or cut off ({error}). {_DOWNLOAD}"
        ) from error
    if reason:
        raise CheckpointError(f"{path} {reason}")
    return _read_pickle(path)


def _header_bytes(head: bytes) -> int:
    """The length that a safetensors file states for its header."""
    return int.from_bytes(head[:8], "little")


def _explain_format(head: bytes) -> str:
    """Say what a file is that begins so; empty if it may be a pickle."""
    if not head:
        return f"is empty. {_DOWNLOAD}"
    head = head.removeprefix(_BOM)
    for pattern, reason in _FOREIGN_FORMATS:
        if re.match(pattern, head, re.IGNORECASE):
            return reason
    if _TEXT.fullmatch(head):
        begin = " ".join(head[:60].decode().split())
        return f"is not a checkpoint, or is damaged: it is text that begins {begin!r}. {_DOWNLOAD}"
    return ""


def _explain_archive(path: Path) -> str:
    """Say what a zip file is; empty if it was written by `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        return f"is damaged or cut off ({error}). {_DOWNLOAD}"
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return (
            "is a TorchScript archive, a program with weights. In Python, "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') saves its weights; a "
            "scripted module itself can be passed as the teacher to cktf.distill."
        )
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        return (
            "is a program of torch.export. In Python, "
            "torch.save(torch.export.load(FILE).state_dict, 'weights.pth') saves its weights."
        )
    if "data.pkl" in ends:
        return ""
    if any(end.endswith((".npy", ".h5")) for end in ends):
        return f"holds arrays of NumPy or Keras. {_CONVERT}"
    return f"is a zip archive of {', '.join(names[:3]) or 'nothing'}. {_UNPACK}"


def _read_pickle(path: Path) -> Any:
    unknown: list[str] = []
    try:
        while True:
            placeholders: list[Any] = [(_placeholder(name), name) for name in unknown]
            try:
                # By its path, torch.load would take the format from the name.
                with torch.serialization.safe_globals(placeholders), path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                name = _unknown_class(str(error))
                if not name or name in unknown or len(unknown) == _MAX_UNKNOWN_CLASSES:
                    raise
                unknown.append(name)
    except Exception as error:  # damaged files raise errors of many types
        cannot_build = isinstance(error, pickle.UnpicklingError | TypeError | AttributeError)
        if (unknown and cannot_build) or "GLOBAL" in str(error):
            named = f" (it names {', '.join(unknown[:3])})" if unknown else ""
            raise CheckpointError(
                f"{path} holds more than weights{named}, such as a whole module, and opening it "
                "could run code, so it was not opened: weights are read with torch.load(…, "
                f"weights_only=True). {SAVE_STATE}"
            ) from error
        raise CheckpointError(
            f"{path} is not a checkpoint, or is damaged or cut off ({type(error).__name__}). "
            "Give a file of torch.save(model.state_dict(), FILE), or of safetensors."
        ) from error


def _unknown_class(message: str) -> str:
    """The class that PyTorch says it does not allow; empty if it says something else."""
    found = re.search(r"Unsupported global: GLOBAL (\S+)", message)
    if found is None:
        return ""
    # PyTorch leaves out the module of built-in functions.
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


class NumpyObject:
    """Stands for a scalar or type of NumPy, whose state is a tuple."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def _placeholder(name: str) -> type:
    """Return a class whose objects are an `OrderedDict`, with the name of the class they had."""
    if name.startswith("numpy."):
        return NumpyObject

    def make(cls: type, *args: object) -> Any:
        # PyTorch sets items and attributes of no other class.
        made: OrderedDict[str, object] = OrderedDict()
        vars(made)["pickled_class"] = name
        return made

    return type("_Placeholder", (), {"__new__": make})


def find_pickled_module(content: Any) -> str | None:
    """Return the class of a whole pickled `nn.Module` in what `read_tensor_file` returned."""
    inner = content.values() if isinstance(content, dict) else []
    for value in (content, *inner):
        if "_modules" in getattr(value, "__dict__", ()):
            return str(vars(value)["pickled_class"])
    return None
