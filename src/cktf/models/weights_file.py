"""Weights on disk: safetensors files that say which network they belong to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cktf.errors import CheckpointError, ModelError
from cktf.files import replace_atomically
from cktf.models.external_weights import identify_network
from cktf.models.network_spec import (
    build_network,
    drop_pretrained,
    parse_network_spec,
    resolve_network_spec,
    runs_user_code,
)
from cktf.models.normalized import Normalized
from cktf.models.published_keys import to_published_keys

_SHOWN = 3


def save_network(
    network: nn.Module,
    path: Path,
    *,
    name: str,
    classes: Sequence[str],
    dataset: str,
    images: Tensor | None = None,
) -> None:
    """Write a network's weights and what is needed to build it again.

    Args:
        network: a bare network, or a `Normalized` one, whose mean and std are kept.
        path: the file, replaced if it is there.
        name: what `create` calls the network; for a user's own, any name.
        classes: names of the classes in the order of the logits.
        dataset: what it was trained on.
        images: [B, C, H, W], some that it was trained on, whose size is kept.

    Raises:
        OSError: it could not be written; an earlier file is as it was.
    """
    described: dict[str, object] = {"network": name, "classes": list(classes), "dataset": dataset}
    if (line := resolve_network_spec(name)) != name:
        described["located"] = line
    if images is not None:
        described["image_size"] = list(images.shape[2:])
    if isinstance(network, Normalized):
        described["mean"] = network.mean.flatten().tolist()
        described["std"] = network.std.flatten().tolist()
        described["size"] = network.size
        network = network.network
    state = {
        key: value.detach().cpu().clone().contiguous()
        for key, value in network.state_dict().items()
    }
    try:
        with replace_atomically(path) as temp_path:
            save_file(state, temp_path, metadata={"cktf": json.dumps(described)})
    except SafetensorError as error:
        # A full disk, for one, comes as an error of its own.
        raise OSError(str(error)) from error


def read_metadata(path: Path) -> dict[str, object]:
    """What a file written by `save_network` says of itself.

    Raises:
        CheckpointError: no such file, not a safetensors file, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}. Give a run folder or a file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged ({error}). Give a run folder, or the "
            "student.safetensors in it."
        ) from error
    if "cktf" not in metadata:
        raise CheckpointError(
            f"{path} does not say which network it belongs to. Build the network yourself, load it "
            "with cktf.models.load_weights, and pass it to cktf.distill."
        )
    try:
        described: dict[str, object] = json.loads(metadata["cktf"])
        complete = _is_complete(described)
    except (ValueError, AttributeError, RecursionError):
        complete = False
    if not complete:
        raise CheckpointError(
            f"{path} describes its network in a way that is not ours. Save it anew."
        )
    return described


def _is_complete(described: dict[str, object]) -> bool:
    """Whether a description has all that is read of it, in the right types."""
    classes, network = described.get("classes"), described.get("network")
    names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    numbers = all(
        isinstance(value, list) and all(isinstance(part, int | float) for part in value)
        for value in (described.get(key, []) for key in ("mean", "std", "image_size"))
    )
    both = ("mean" in described) == ("std" in described)
    size = isinstance(described.get("size"), int | None)
    named = isinstance(network, str) and isinstance(described.get("dataset"), str)
    return bool(classes) and names and numbers and both and size and named


def load_network(path: Path, *, trust_code: bool = False) -> tuple[nn.Module, dict[str, object]]:
    """The network in a file written by `save_network`, and its description.

    Args:
        path: the file.
        trust_code: whether the Python file or module that it names may run.

    Raises:
        CheckpointError: a file that is missing, damaged, or of a network not in the library.
    """
    described = read_metadata(path)
    name = _line(described)
    try:
        if runs_user_code(name) and not trust_code:
            raise ModelError(
                "it is built by code of its user's, which a file cannot have run. Read it, and add "
                "--trust-code if you trust it."
            )
        # Its weights come from the file, not from where they once came.
        source = drop_pretrained(parse_network_spec(name))
        classes = len(described["classes"])  # type: ignore[arg-type]
        network = build_network(source, classes).network
    except ModelError as error:
        raise CheckpointError(
            f"{path} holds {name!r}, which cannot be built from its name: {error} Or name the "
            f"network yourself: --teacher NETWORK --teacher-weights {path}; or in Python with "
            "cktf.models.load_weights."
        ) from error
    load_weights(network, path)
    if "mean" in described:
        seen: dict[str, Any] = {key: described.get(key) for key in ("mean", "std", "size")}
        network = Normalized(network, **seen)
    return network, described


def _line(described: dict[str, object]) -> str:
    """What builds the network: of a Python file where it was then, or else as it was named."""
    line = described.get("located")
    if isinstance(line, str) and Path(line.partition(".py:")[0] + ".py").is_file():
        return line
    return str(described["network"])


def load_weights(network: nn.Module, path: Path | str) -> None:
    """Load a safetensors file into a network; every key and shape must match.

    Raises:
        CheckpointError: a file that is missing or damaged, or belongs to another network: the
            message names the keys that differ.
    """
    path = Path(path)
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint at {path}.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged ({error})."
        ) from error
    load_checked_state_dict(network, state, path)


def load_checked_state_dict(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load weights that were read from a file; every key and shape must match.

    Raises:
        CheckpointError: weights of another network: the message names the keys that differ, and the
            network of the library that they seem to belong to.
    """
    name = getattr(network, "zoo_name", None)
    if name is not None:
        state = to_published_keys(state, name)
    differences = _differences(network.state_dict(), state)
    if differences:
        found = identify_network(state)
        seems = (
            "" if found is None else f" They seem to be those of {found[0]}, {found[1]} classes."
        )
        raise CheckpointError(
            f"The weights in {path} do not fit {name or type(network).__name__}: "
            f"{'; '.join(differences)}.{seems} Build the network that the weights were saved from."
        )
    network.load_state_dict(dict(state))


def is_cktf_weights_file(path: Path) -> bool:
    """Whether a file was written by `save_network`."""
    try:
        read_metadata(path)
    except CheckpointError:
        return False
    return True


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shapes = {
        f"{key} is {tuple(given[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & given.keys()
        if given[key].shape != expected[key].shape
    }
    found = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "wrong shape": sorted(shapes),
    }
    return [_listed(what, keys) for what, keys in found.items() if keys]


def _listed(what: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{what}: {', '.join(keys[:_SHOWN])}{more}"
