"""The weights that a recipe names, found but not loaded."""

from pathlib import Path

from cktf.errors import CheckpointError, ModelError
from cktf.models.network_spec import is_library_network, is_python_file, parse_network_spec
from cktf.recipes.schema import CUSTOM
from cktf.user_paths import expand_user_path

_WEIGHTS_NAME = "student.safetensors"
_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"}


def is_weights_path(spec: str) -> bool:
    """Whether a spec is a run folder or a weights file, not the name of a network.

    The name of a network takes precedence over a folder of that name, which is `./NAME`.
    """
    if spec == CUSTOM or is_library_network(spec) or is_python_file(spec):
        return False
    return expand_user_path(spec).exists()


def check_teacher(teacher: str, weights: str | None) -> None:
    """Check that a teacher exists and has trained weights, without loading it.

    Raises:
        CheckpointError: no file, or no trained weights.
        ModelError: no such network.
    """
    if is_weights_path(teacher):
        find_weights_file(teacher)
        if weights is not None:
            raise CheckpointError(
                f"{teacher} has weights of its own. Leave out teacher_weights, or name the "
                "network that they belong to as the teacher."
            )
        return
    try:
        spec = parse_network_spec(teacher)
    except ModelError as error:
        # A path is not compared with the names of networks.
        is_path = expand_user_path(teacher).suffix in _SUFFIXES
        reason = "There is no such file." if is_path else error
        raise CheckpointError(
            f"{teacher} is neither a run folder nor a file of weights nor a network. {reason}"
        ) from error
    if weights is not None:
        if not expand_user_path(weights).is_file():
            raise CheckpointError(
                f"teacher_weights: there is no file {weights}.{_list_weights(weights)}"
            )
    elif not spec.is_user_code and not spec.arguments.get("pretrained"):
        advice = "give its weights with --teacher-weights FILE"
        if spec.library:
            advice += f", or ask for {spec.library}:{spec.name}(pretrained=True)"
        if Path(teacher).exists():
            advice += f", or name what is called so here: ./{teacher}"
        raise CheckpointError(
            f"{teacher!r} is a network without trained weights here. Train it first (cktf train "
            f"--model {teacher} --out runs/teacher; then --teacher runs/teacher), or {advice}."
        )


def find_weights_file(path_or_run: str) -> Path:
    """Return the weights file of a run folder, or the file itself.

    Raises:
        CheckpointError: there is none.
    """
    path = expand_user_path(path_or_run)
    if path.is_dir():
        if not (path / _WEIGHTS_NAME).is_file():
            raise CheckpointError(
                f"{path} holds no {_WEIGHTS_NAME}: the run is unfinished, or it is no run folder. "
                f"Finish it with --resume auto.{_list_weights(path_or_run)}"
            )
        return path / _WEIGHTS_NAME
    if path.is_file():
        return path
    raise CheckpointError(f"{path_or_run} is neither a run folder nor a file of weights.")


def _list_weights(folder: str) -> str:
    """Say which files of a folder look like weights; empty if none does."""
    path = expand_user_path(folder)
    files = sorted(p.name for p in path.glob("*") if p.suffix in _SUFFIXES) if path.is_dir() else []
    if not files:
        return ""
    return f" Or give a file of weights in {folder}: {', '.join(files[:3])}."
