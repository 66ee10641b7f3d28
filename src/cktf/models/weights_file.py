"""Weights files: safetensors with the name, classes and statistics of their network."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Size, Tensor, nn

from cktf.errors import CheckpointError, ModelError
from cktf.files import replace_atomically
from cktf.models.external_weights import describe_origin, drop_counters, read_state_dict
from cktf.models.extra_state import pack_extra_state, unpack_extra_state
from cktf.models.network_building import build_network, drop_pretrained
from cktf.models.network_spec import parse_network_spec, resolve_network_spec
from cktf.models.normalized import Normalized
from cktf.models.own_code import needs_trust
from cktf.models.published_keys import to_published_keys

_MAX_NAMED_KEYS = 3


def save_network(
    network: nn.Module,
    path: Path,
    *,
    name: str,
    classes: Sequence[str],
    dataset: str,
    images: Tensor | None = None,
) -> None:
    """Write a network's weights, and the metadata that `load_network` needs to build it.

    Args:
        network: a bare network, or a `Normalized` one, whose mean, std and size are saved.
        path: the file, replaced atomically.
        name: the network's spec; any name for a module made in Python.
        classes: class names, in the order of the logits.
        dataset: name of the training data.
        images: [B, C, H, W], a training batch, whose channels and image size are saved.

    Raises:
        OSError: the file cannot be written; an earlier file is unchanged.
    """
    metadata: dict[str, object] = {"network": name, "classes": list(classes), "dataset": dataset}
    if (spec := resolve_network_spec(name)) != name:
        metadata["located"] = spec
    if images is not None:
        metadata["channels"] = images.shape[1]
        metadata["image_size"] = list(images.shape[2:])
    if isinstance(network, Normalized):
        metadata["mean"] = network.mean.flatten().tolist()
        metadata["std"] = network.std.flatten().tolist()
        metadata["size"] = network.size
        network = network.network
    state = {
        key: value.detach().cpu().clone().contiguous()
        for key, value in pack_extra_state(network.state_dict()).items()
    }
    try:
        with replace_atomically(path) as temp_path:
            save_file(state, temp_path, metadata={"cktf": json.dumps(metadata)})
    except SafetensorError as error:
        # safetensors has its own error for a full disk.
        raise OSError(str(error)) from error


def read_metadata(path: Path) -> dict[str, object]:
    """Read the metadata that `save_network` wrote: network, classes, dataset and more.

    Raises:
        CheckpointError: no such file, not a safetensors file, or one without this metadata.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}. Give a run folder or a file.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged ({error}). Give a run folder, or the "
            "student.safetensors in it."
        ) from error
    if "cktf" not in header:
        raise CheckpointError(
            f"{path} does not say which network it belongs to. Build the network yourself, load it "
            "with cktf.models.load_weights, and pass it to cktf.distill."
        )
    try:
        metadata: dict[str, object] = json.loads(header["cktf"])
        complete = _is_complete(metadata)
    except (ValueError, AttributeError, RecursionError):
        complete = False
    if not complete:
        raise CheckpointError(
            f"{path} has malformed metadata. Save it again with cktf.models.save_network."
        )
    # As data sets name them; macOS may have written an accent as a character of its own.
    metadata["classes"] = [normalize("NFC", name) for name in metadata["classes"]]  # type: ignore[attr-defined]
    return metadata


def _is_complete(metadata: dict[str, object]) -> bool:
    """Whether metadata has all required fields with the right types."""
    classes, network = metadata.get("classes"), metadata.get("network")
    names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    numbers = all(
        isinstance(value, list) and all(isinstance(part, int | float) for part in value)
        for value in (metadata.get(key, []) for key in ("mean", "std", "image_size"))
    )
    both = ("mean" in metadata) == ("std" in metadata)
    size = all(isinstance(metadata.get(key), int | None) for key in ("size", "channels"))
    named = isinstance(network, str) and isinstance(metadata.get("dataset"), str)
    return bool(classes) and names and numbers and both and size and named


def load_network(path: Path, *, trust_code: bool = False) -> tuple[nn.Module, dict[str, object]]:
    """Load the network in a file written by `save_network`, with its metadata.

    Args:
        path: the file.
        trust_code: run the Python file or module that the metadata names. A file that the user has
            run before, unchanged, runs in any case.

    Raises:
        CheckpointError: a file that is missing or damaged, or a network that cannot be built.
    """
    metadata = read_metadata(path)
    name = str(metadata["network"])
    located = metadata.get("located")
    # A Python file is looked for where it was when the weights were saved.
    if isinstance(located, str) and Path(located.partition(".py:")[0] + ".py").is_file():
        name = located
    try:
        if needs_trust(name) and not trust_code:
            raise ModelError(
                f"it is built by its user's code, {name}, which loading a file does not run unless "
                "you have run the same before, unchanged and in the same place. Read the code, and "
                "add --trust-code if you trust it."
            )
        # The file has the weights; pretrained ones need not be loaded.
        spec = drop_pretrained(parse_network_spec(name))
        num_classes = len(metadata["classes"])  # type: ignore[arg-type]
        network = build_network(spec, num_classes).network
    except ModelError as error:
        raise CheckpointError(
            f"{path} holds {name!r}, which cannot be built from its name: {error} Or name the "
            f"network yourself: --teacher NETWORK --teacher-weights {path}; or --network "
            "FILE.py:FUNCTION where a run is evaluated, exported or reported; or in Python with "
            "cktf.models.load_weights."
        ) from error
    load_weights(network, path)
    if "mean" in metadata:
        statistics: dict[str, Any] = {key: metadata.get(key) for key in ("mean", "std", "size")}
        network = Normalized(network, **statistics)
    return network, metadata


def load_weights(network: nn.Module, path: Path | str) -> None:
    """Load a file of weights into a network; every key and shape must match.

    Args:
        network: the network.
        path: a safetensors file, or one of `torch.save`.

    Raises:
        CheckpointError: a file that is missing or damaged, or weights of another network; the
            message names the keys that differ.
    """
    state = read_state_dict(Path(path), network.state_dict().keys())
    load_state_dict_strictly(network, state, Path(path))


def load_state_dict_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into a network; every key and shape must match.

    The counters of BatchNorm, which files of PyTorch before 0.4.1 lack, may be missing, and
    counters that the network lacks are left out.

    Args:
        network: the network.
        state: its weights.
        path: the file that they were read from, for messages.

    Raises:
        CheckpointError: weights of another network; the message names the keys that differ, and
            what these weights seem to belong to.
    """
    zoo_name = getattr(network, "zoo_name", None)
    if zoo_name is not None:
        state = to_published_keys(state, zoo_name)
    name = zoo_name or type(network).__name__
    own_state = network.state_dict()
    # The form of an extra state is its module's own.
    expected = {
        key: value if isinstance(value, Tensor) else state.get(key, value)
        for key, value in own_state.items()
    }
    state = drop_counters(state, expected.keys())
    differences = _find_differences(expected, state)
    if differences:
        raise CheckpointError(
            f"The weights in {path} do not fit {name}: "
            f"{'; '.join(differences)}. {_explain_differences(expected, state)} Build the network "
            "that the weights were saved from."
        )
    try:
        network.load_state_dict(unpack_extra_state(state, own_state))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} holds tensors or an extra state that cannot be loaded into {name} "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[-1].strip()}). Save the "
            "network again, with dense tensors on a CPU."
        ) from error


def is_cktf_weights_file(path: Path) -> bool:
    """Whether a file was written by `save_network`."""
    try:
        read_metadata(path)
    except CheckpointError:
        return False
    return True


def _find_differences(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> list[str]:
    """List the keys that are missing, unexpected or of another shape, the first ones by name."""
    shapes = {
        f"{key} is {tuple(actual[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & actual.keys()
        if actual[key].shape != expected[key].shape
    }
    keys_by_problem = {
        # PyTorch itself sets counters that are missing to 0.
        "missing": sorted(drop_counters(expected, actual.keys()).keys() - actual.keys()),
        "unexpected": sorted(actual.keys() - expected.keys()),
        "wrong shape": sorted(shapes),
    }
    differences = []
    for problem, keys in keys_by_problem.items():
        count = len(keys) - _MAX_NAMED_KEYS
        others = f" and {count} more" if count > 0 else ""
        if keys:
            differences.append(f"{problem}: {', '.join(keys[:_MAX_NAMED_KEYS])}{others}")
    return differences


def _explain_differences(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> str:
    """Say what weights that do not fit seem to be."""
    shared = expected.keys() & actual.keys()
    differing = [key for key in shared if expected[key].shape != actual[key].shape]
    firsts = {(actual[key].shape[:1], expected[key].shape[:1]) for key in differing}
    same_keys = drop_counters(expected).keys() == drop_counters(actual).keys()
    theirs, ours = next(iter(firsts)) if len(firsts) == 1 else (Size(), Size())
    if same_keys and theirs != ours and len(differing) <= 2:
        return f"They are of a network with {theirs[0]} classes instead of {ours[0]}."
    if (origin := describe_origin(actual)) is not None:
        return f"They seem to be those of {origin[0]}, {origin[1]} classes."
    if differing:
        return "They are of a network with layers of other widths."
    if actual.keys() < expected.keys():
        return "They are of a part of the network, such as one without its classifier."
    return "They are of a network with other layers, or with other names for them."
