"""From names to networks: the student that a recipe asks for, and its trained teacher."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from cktf.data import ImageSet
from cktf.errors import CheckpointError, ModelError
from cktf.models import (
    NetworkSpec,
    Normalized,
    build_network,
    create,
    identify_network,
    is_cktf_weights_file,
    is_library_network,
    load_checked_state_dict,
    load_network,
    parse_network_spec,
    read_metadata,
    read_state_dict,
    short_sha256,
)
from cktf.recipes.schema import CUSTOM
from cktf.taps import resize_classifier
from cktf.user_paths import expand_user_path

_STUDENT_FILE = "student.safetensors"


@dataclass(frozen=True)
class LoadedNetwork:
    """A trained network.

    Attributes:
        network: from images in [0, 1] to logits.
        name: for the record.
        note: what was loaded, for the log.
        classes: names of those that its logits are of, where its file says.
    """

    network: nn.Module
    name: str
    note: str
    classes: tuple[str, ...] | None = None


def build_student(line: str, data: ImageSet, num_classes: int | None = None) -> Normalized:
    """A network for the classes of a data set, which normalizes and resizes images itself.

    Args:
        line: which network.
        data: whose mean and std it takes, unless it comes with its own.
        num_classes: of its logits; by default those of the data.

    Raises:
        ModelError: it is not there, or cannot be built.
    """
    classes = len(data.classes) if num_classes is None else num_classes
    built = build_network(parse_network_spec(line), classes)
    mean, std = (data.mean, data.std) if built.mean is None else (built.mean, built.std)
    assert std is not None
    return Normalized(built.network, mean, std, built.size)


def is_pretrained_spec(line: str) -> bool:
    """Whether a line asks for a network with the weights that its library has for it."""
    return bool(parse_network_spec(line).arguments.get("pretrained"))


def set_input_size(network: nn.Module, size: int | None) -> nn.Module:
    """The same network, which resizes images to a size before it sees them; None: as it is.

    Raises:
        ModelError: a user's own network, which sees images as they come.
    """
    if size is None:
        return network
    if not isinstance(network, Normalized):
        raise ModelError(
            f"A size, given {size}, is of networks by name or from a run. Resize images in your "
            "own module, or wrap it in cktf.models.Normalized."
        )
    network.size = size
    return network


def is_weights_path(line: str) -> bool:
    """Whether a line is of a run folder or a file, and not of a network.

    A network's name is one wherever it is given; `./NAME` is the folder that is called so.
    """
    return line != CUSTOM and not is_library_network(line) and expand_user_path(line).exists()


def check_network(line: str) -> None:
    """Make sure that there is a network to train, as far as that can be seen without loading it.

    Raises:
        CktfError: neither a network, nor a run folder or file of weights to go on from.
    """
    if is_weights_path(line):
        find_weights_file(line)
    else:
        parse_network_spec(line)


def load_initial_network(
    line: str,
    data: ImageSet,
    classes: int | None = None,
    *,
    anew: bool = False,
    trust_code: bool = False,
) -> LoadedNetwork:
    """A trained network with a classifier for a data set, new where it told other classes.

    Its own classifier stays where nobody names its classes, if it tells as many.

    Args:
        line: a run folder or a file of weights.
        data: whose classes it is to tell.
        classes: how many it is to tell, where nobody names those of the data.
        anew: whether the classifier is new in any case.
        trust_code: whether code that the weights name may run.

    Raises:
        CheckpointError: weights that are missing or damaged.
        ModelError: no classifier that could be replaced.
        RuntimeError: it cannot take the images.
    """
    found = load_teacher(line, None, data, trust_code=trust_code)
    told = _classes_told(expand_user_path(line)) if classes is None else None
    others = anew or (told is not None and told != tuple(data.classes))
    count = len(data.classes) if classes is None else classes
    images = data[0][0].expand(2, -1, -1, -1)
    if resize_classifier(found.network, count, images, anew=others):
        return replace(found, note=f"{found.note}; with a new classifier of {count} classes")
    return found


def _classes_told(path: Path) -> tuple[str, ...] | None:
    """Names of a network's classes, where its file says."""
    file = find_weights_file(str(path))
    if not is_cktf_weights_file(file):
        return None
    classes = read_metadata(file)["classes"]
    assert isinstance(classes, list)
    told = tuple(classes)
    return None if told == numbered_class_names(len(told)) else told


def numbered_class_names(count: int) -> tuple[str, ...]:
    """What classes without names are called.

    >>> numbered_class_names(2)
    ('class 0', 'class 1')
    """
    return tuple(f"class {number}" for number in range(count))


def check_teacher(teacher: str, weights: str | None) -> None:
    """Make sure that there is such a teacher, as far as that can be seen without loading it.

    Raises:
        CheckpointError: no file, or no trained weights.
        ModelError: no such network.
    """
    if is_weights_path(teacher):
        find_weights_file(teacher)
        if weights is not None:
            raise CheckpointError(
                f"{teacher} has weights of its own. Leave teacher_weights away, or name the "
                "network that they belong to as the teacher."
            )
        return
    try:
        source = parse_network_spec(teacher)
    except ModelError as error:
        raise CheckpointError(
            f"{teacher} is neither a run folder nor a file of weights nor a network. {error}"
        ) from error
    if weights is not None:
        if not expand_user_path(weights).is_file():
            raise CheckpointError(f"teacher_weights: there is no file {weights}.")
    elif not source.is_own_code and not source.arguments.get("pretrained"):
        advice = "give its weights with --teacher-weights FILE"
        if source.library:
            advice += f", or ask for {source.line}(pretrained=True)"
        if Path(teacher).exists():
            advice += f", or name what is called so here: ./{teacher}"
        raise CheckpointError(
            f"{teacher!r} is a network without trained weights here. Train it first (cktf train "
            f"--model {teacher} --out runs/teacher; then --teacher runs/teacher), or {advice}."
        )


def find_weights_file(teacher: str) -> Path:
    """The weights that a teacher's name stands for: in a run folder, or the file itself.

    Raises:
        CheckpointError: nothing there.
    """
    path = expand_user_path(teacher)
    if path.is_dir():
        if not (path / _STUDENT_FILE).is_file():
            raise CheckpointError(
                f"{path} holds no {_STUDENT_FILE}: the run is unfinished, or it is no run folder. "
                "Finish it with --resume auto."
            )
        return path / _STUDENT_FILE
    if path.is_file():
        return path
    raise CheckpointError(f"{teacher} is neither a run folder nor a file of weights.")


def load_teacher(
    teacher: str,
    classes: tuple[str, ...] | None,
    data: ImageSet | None = None,
    weights: str | None = None,
    *,
    trust_code: bool = False,
) -> LoadedNetwork:
    """A trained network.

    Args:
        teacher: a run folder, a file of weights, or a network.
        classes: of the data; a network that was trained here has to know the same.
        data: whose mean and std a network takes that does not say its own; None: it takes images
            as they come.
        weights: a file, for a network.
        trust_code: whether code that weights name may run.

    Raises:
        CheckpointError: weights that are missing, damaged, or of another network.
        ModelError: other classes, or a network that cannot be built.
    """
    check_teacher(teacher, weights)
    if is_weights_path(teacher):
        path = find_weights_file(teacher)
        return (
            _ours(path, classes, trust_code)
            if is_cktf_weights_file(path)
            else _published(path, data)
        )
    source = parse_network_spec(teacher)
    if weights is None:
        built = build_network(source, None)
        mean = built.mean, built.std
        return LoadedNetwork(
            _seeing(built.network, *mean, built.size, data), teacher, f"built {teacher}"
        )
    return _with_weights(source, expand_user_path(weights), data)


def _ours(path: Path, classes: tuple[str, ...] | None, trust_code: bool) -> LoadedNetwork:
    network, described = load_network(path, trust_code=trust_code)
    own = described["classes"]
    assert isinstance(own, list)
    if classes is not None and len(own) != len(classes):
        raise ModelError(
            f"{path} knows {len(own)} classes (it was trained on {described['dataset']}), and the "
            f"data has {len(classes)}. Use its own data set, or a network trained on this one."
        )
    if classes is not None and described["dataset"] != CUSTOM and tuple(own) != classes:
        raise ModelError(
            f"{path} knows other classes (of {described['dataset']}: {own[0]}, {own[1]}, …) than "
            f"the data has ({classes[0]}, {classes[1]}, …). Use its own data set, or a network "
            "trained on this one."
        )
    name = str(described["network"])
    note = f"loaded {name} from {path}, sha256 {short_sha256(path)}…"
    if isinstance(size := described.get("image_size"), list):
        note += f", trained on images of {'x'.join(map(str, size))}"
    return LoadedNetwork(
        network, name, note, None if described["dataset"] == CUSTOM else tuple(own)
    )


def _published(path: Path, data: ImageSet | None) -> LoadedNetwork:
    """A file that does not say whose weights it holds: of the network that has just these."""
    state = read_state_dict(path)
    found = identify_network(state)
    if found is None:
        raise CheckpointError(
            f"{path} holds {len(state)} tensors ({', '.join(list(state)[:3])}, …), and no network "
            "of this library has just these. Name the network of a teacher: --teacher NETWORK "
            f"--teacher-weights {path}; one to train comes with weights from a function of yours "
            "that loads them, FILE.py:FUNCTION."
        )
    name, classes = found
    network = create(name, classes)
    load_checked_state_dict(network, state, path)
    note = f"loaded {name} from {path} by its weights, sha256 {short_sha256(path)}…"
    return LoadedNetwork(_seeing(network, None, None, None, data), name, note)


def _with_weights(source: NetworkSpec, path: Path, data: ImageSet | None) -> LoadedNetwork:
    # A file of ours knows more than the weights.
    said: dict[str, Any] = read_metadata(path) if is_cktf_weights_file(path) else {}
    built = build_network(source, len(said["classes"]) if said else None)
    state = read_state_dict(path, built.network)
    # The classifier's own rows say how many classes the weights know.
    own = built.network.state_dict()
    known = [k for k, v in state.items() if k in own and v.dim() == 1]
    rows = {len(state[k]) for k in known if state[k].shape != own[k].shape}
    if len(rows) == 1:
        built = build_network(source, rows.pop())
    load_checked_state_dict(built.network, state, path)
    note = f"loaded {source.line} from {path}, sha256 {short_sha256(path)}…"
    mean, std = said.get("mean", built.mean), said.get("std", built.std)
    network = _seeing(built.network, mean, std, said.get("size", built.size), data)
    return LoadedNetwork(network, source.line, note)


def _seeing(
    network: nn.Module,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: int | None,
    data: ImageSet | None,
) -> Normalized:
    """A network that normalizes as its source says, or as the data's own networks do.

    A data set of the user's own gives images as its networks are to see them.
    """
    if mean is None or std is None:
        mean, std = ((0.0,), (1.0,)) if data is None else (data.mean, data.std)
    return Normalized(network, mean, std, size)
