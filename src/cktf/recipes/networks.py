"""The networks that a recipe names: a student to train, and its trained teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cktf.data import ImageSet
from cktf.errors import CheckpointError, ModelError
from cktf.models import (
    NetworkSpec,
    Normalized,
    build_network,
    create,
    describe_origin,
    identify_network,
    is_cktf_weights_file,
    load_network,
    load_state_dict_strictly,
    load_weights,
    parse_network_spec,
    prepare_user_network,
    read_metadata,
    read_state_dict,
    short_sha256,
)
from cktf.recipes.schema import CUSTOM
from cktf.recipes.weights_paths import check_teacher, find_weights_file, is_weights_path
from cktf.taps import resize_classifier
from cktf.user_paths import expand_user_path


@dataclass(frozen=True)
class LoadedNetwork:
    """A trained network.

    Attributes:
        network: from images in [0, 1] to logits.
        name: for the summary.
        note: what was loaded, for the log.
        classes: class names of its logits, where its file has them.
        trained_size: height and width of the images that it was trained on, where they are known.
    """

    network: nn.Module
    name: str
    note: str
    classes: tuple[str, ...] | None = None
    trained_size: tuple[int, ...] | None = None


def build_student(spec: str, data: ImageSet, num_classes: int | None = None) -> Normalized:
    """Build a network for the classes of a data set; it normalizes and resizes images itself.

    Args:
        spec: which network.
        data: whose mean and std it takes, unless it comes with its own.
        num_classes: of its logits; by default those of the data.

    Raises:
        ModelError: there is no such network, or it cannot be built.
    """
    num_classes = len(data.classes) if num_classes is None else num_classes
    built = build_network(parse_network_spec(spec), num_classes)
    mean, std = (data.mean, data.std) if built.mean is None else (built.mean, built.std)
    assert std is not None
    return Normalized(built.network, mean, std, built.size)


def set_input_size(network: nn.Module, size: int | None) -> nn.Module:
    """Make a network resize its images to a size; None changes nothing.

    Raises:
        ModelError: a user's own module.
    """
    if size is None:
        return network
    if not isinstance(network, Normalized):
        raise ModelError(
            f"A size, given {size}, is for networks by name or from a run. Resize images in your "
            "own module, or wrap it in cktf.models.Normalized."
        )
    network.size = size
    return network


def load_initial_network(
    path: str,
    data: ImageSet,
    num_classes: int | None = None,
    *,
    new_classifier: bool = False,
    trust_code: bool = False,
) -> LoadedNetwork:
    """Load a trained network to train it further.

    Its classifier is replaced by a new one where its classes differ from those of the data, by name
    or, without names, in number.

    Args:
        path: a run folder or a weights file.
        data: the data set to train on.
        num_classes: of the data, where its classes have no names.
        new_classifier: whether to replace the classifier in any case.
        trust_code: whether code that the weights name may run.

    Raises:
        CheckpointError: weights that are missing or damaged.
        ModelError: no classifier that can be replaced.
        RuntimeError: it cannot take the images.
    """
    loaded = load_teacher(path, None, data, trust_code=trust_code)
    if num_classes is None:
        num_classes = len(data.classes)
        file = find_weights_file(path)
        if is_cktf_weights_file(file):
            names: Any = read_metadata(file)["classes"]
            same_names = numbered_class_names(len(names)), tuple(data.classes)
            new_classifier |= tuple(names) not in same_names
    images = data[0][0].expand(2, -1, -1, -1)
    if resize_classifier(loaded.network, num_classes, images, force=new_classifier):
        note = f"{loaded.note}; with a new classifier of {num_classes} classes"
        return replace(loaded, note=note)
    return loaded


def numbered_class_names(count: int) -> tuple[str, ...]:
    """Return names for classes without names.

    >>> numbered_class_names(2)
    ('class 0', 'class 1')
    """
    return tuple(f"class {number}" for number in range(count))


def load_teacher(
    teacher: str,
    classes: tuple[str, ...] | None,
    data: ImageSet | None = None,
    weights: str | None = None,
    *,
    trust_code: bool = False,
) -> LoadedNetwork:
    """Load a trained network.

    Args:
        teacher: a run folder, a weights file, or a network.
        classes: class names of the data, which a network that was trained here must share; None
            for any.
        data: whose mean and std a network takes that does not come with its own; None to normalize
            nothing.
        weights: a weights file, for a network by name.
        trust_code: whether code that weights name may run.

    Raises:
        CheckpointError: weights that are missing, damaged, or of another network.
        ModelError: other classes, or a network that cannot be built.
    """
    check_teacher(teacher, weights)
    if is_weights_path(teacher):
        path = find_weights_file(teacher)
        if is_cktf_weights_file(path):
            return _load_cktf_weights(path, classes, trust_code)
        return _load_published_weights(path, data)
    spec = parse_network_spec(teacher)
    if weights is not None:
        return _load_weights_into(spec, expand_user_path(weights), data)
    built = build_network(spec, None)
    network = _normalized(built.network, built.mean, built.std, built.size, data)
    return LoadedNetwork(network, teacher, f"built {teacher}", trained_size=built.trained_size)


def load_run_network(
    run: Path,
    classes: tuple[str, ...] | None,
    network: nn.Module | str | None = None,
    *,
    trust_code: bool = False,
) -> LoadedNetwork:
    """Load the trained network of a finished run.

    Args:
        run: the run folder, or its weights file.
        classes: class names of the data, which the network must share; None for any.
        network: what the weights are loaded into, where the run's network was made in Python: a
            module, which is changed in place, or the spec of one, whose code is run.
        trust_code: whether code that the weights name may run.

    Raises:
        CheckpointError: no finished run, or weights of another network.
        ModelError: other classes, or a network that cannot be built.
    """
    if network is None:
        return load_teacher(str(run.absolute()), classes, trust_code=trust_code)
    path = find_weights_file(str(run.absolute()))
    metadata: dict[str, Any] = read_metadata(path)
    if isinstance(network, str):
        spec = parse_network_spec(network)
        network = build_network(spec, len(metadata["classes"])).network
    network = prepare_user_network(network)
    inner = network.network if isinstance(network, Normalized) else network
    load_weights(inner, path)
    network = inner
    # The run's student normalized its images only if its file says so.
    if "mean" in metadata:
        network = Normalized(inner, metadata["mean"], metadata["std"], metadata.get("size"))
    return _describe_loaded(network, path, metadata, classes)


def _load_cktf_weights(
    path: Path, classes: tuple[str, ...] | None, trust_code: bool
) -> LoadedNetwork:
    """Load a network from a file that describes it."""
    network, metadata = load_network(path, trust_code=trust_code)
    return _describe_loaded(network, path, metadata, classes)


def _describe_loaded(
    network: nn.Module,
    path: Path,
    metadata: Mapping[str, Any],
    classes: tuple[str, ...] | None,
) -> LoadedNetwork:
    """Check a network's classes, and describe it by the metadata of its file."""
    dataset = metadata["dataset"]
    assert isinstance(metadata["classes"], list)
    network_classes = tuple(metadata["classes"])
    if classes is not None and len(network_classes) != len(classes):
        raise ModelError(
            f"{path} knows {len(network_classes)} classes (it was trained on {dataset}), and the "
            f"data has {len(classes)}. Use its own data set, or a network trained on this one."
        )
    if classes is not None and dataset != CUSTOM and network_classes != classes:
        first = next(i for i, name in enumerate(classes) if name != network_classes[i])
        theirs, ours = (", ".join(names[first : first + 2]) for names in (network_classes, classes))
        raise ModelError(
            f"{path} knows other classes (of {dataset}: {theirs}, …) than the data has ({ours}, "
            "…), or in another order. Use its own data set, or a network trained on this one."
        )
    name = str(metadata["network"])
    note = f"loaded {name} from {path}, sha256 {short_sha256(path)}…"
    trained_size = _trained_size(metadata)
    if isinstance(size := metadata.get("image_size"), list):
        note += f", trained on images of {'x'.join(map(str, size))}"
    names = None if dataset == CUSTOM else network_classes
    return LoadedNetwork(network, name, note, names, trained_size)


def _load_published_weights(path: Path, data: ImageSet | None) -> LoadedNetwork:
    """Load a file without a description into the library's network that has the same tensors."""
    state = read_state_dict(path)
    match = identify_network(state)
    if match is None:
        origin = describe_origin(state)
        network_name = "NETWORK" if origin is None else origin[0]
        guess = "" if origin is None else f" They seem to be those of {origin[0]}."
        raise CheckpointError(
            f"{path} holds {len(state)} tensors ({', '.join(list(state)[:3])}, …), and no network "
            f"of this library has just these.{guess} Name the network of a teacher: --teacher "
            f"{network_name} --teacher-weights {path}; one to train comes with weights from a "
            "function of yours that loads them, FILE.py:FUNCTION."
        )
    name, num_classes = match
    network = create(name, num_classes)
    load_state_dict_strictly(network, state, path)
    note = f"loaded {name} from {path} by its weights, sha256 {short_sha256(path)}…{state.note}"
    return LoadedNetwork(_normalized(network, None, None, None, data), name, note)


def _load_weights_into(spec: NetworkSpec, path: Path, data: ImageSet | None) -> LoadedNetwork:
    """Load a weights file into a network by name, with as many classes as the file has."""
    metadata: dict[str, Any] = read_metadata(path) if is_cktf_weights_file(path) else {}
    built = build_network(spec, len(metadata["classes"]) if metadata else None)
    expected = built.network.state_dict()
    state = read_state_dict(path, expected.keys())
    # The bias of another length than the network's is the classifier's.
    vectors = [k for k, v in state.items() if isinstance(expected.get(k), Tensor) and v.dim() == 1]
    lengths = {len(state[key]) for key in vectors if state[key].shape != expected[key].shape}
    if len(lengths) == 1:
        built = build_network(spec, lengths.pop())
    load_state_dict_strictly(built.network, state, path)
    note = f"loaded {spec.text} from {path}, sha256 {short_sha256(path)}…{state.note}"
    mean, std = metadata.get("mean", built.mean), metadata.get("std", built.std)
    network = _normalized(built.network, mean, std, metadata.get("size", built.size), data)
    return LoadedNetwork(network, spec.text, note, trained_size=_trained_size(metadata))


def _trained_size(metadata: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Height and width of the images that reached a network in training, where its file has them.

    A network that resizes images was trained on those that it resizes to.
    """
    if metadata.get("size"):
        return (metadata["size"],) * 2
    return tuple(metadata["image_size"]) if metadata.get("image_size") else None


def _normalized(
    network: nn.Module,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: int | None,
    data: ImageSet | None,
) -> Normalized:
    """Add normalization: by the network's own mean and std, else the data's, else none."""
    if mean is None or std is None:
        mean, std = ((0.0,), (1.0,)) if data is None else (data.mean, data.std)
    return Normalized(network, mean, std, size)
