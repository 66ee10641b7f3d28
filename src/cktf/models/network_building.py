"""Build a network from its spec: with this library, timm, torchvision or a user's code.

A user's function is called with `num_classes` where it has such a parameter; it states the mean,
std and size that its network expects by returning a `Normalized` network.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cktf.errors import ModelError
from cktf.models.network_spec import NetworkSpec
from cktf.models.normalized import Normalized
from cktf.models.user_code import DEFAULT_CLASSES, call_user_code
from cktf.models.user_network import prepare_user_network
from cktf.models.zoo import create

# timm loads the files that these arguments name, pickles among them, without checking them.
_FILE_ARGUMENTS = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}


@dataclass(frozen=True)
class BuiltNetwork:
    """A network and the images that it expects.

    Attributes:
        network: from normalized images to logits.
        mean, std: per channel, of its training images; None where they are unknown.
        size: height and width to which images are resized; None: not resized.
        trained_size: height and width of the images that its weights were trained on; None where
            they are unknown.
    """

    network: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    trained_size: tuple[int, ...] | None = None


def build_network(spec: NetworkSpec, num_classes: int | None) -> BuiltNetwork:
    """Build a network, with fresh weights unless its arguments ask for pretrained ones.

    Args:
        spec: which network.
        num_classes: of its logits; None for the library's default.

    Raises:
        ModelError: the library or the user's code fails, or pretrained weights are not on this
            machine.
    """
    arguments = dict(spec.arguments)
    if num_classes is not None and not spec.is_user_code:
        arguments.setdefault("num_classes", num_classes)
    try:
        if not spec.library:
            network = create(spec.name, **({"num_classes": DEFAULT_CLASSES} | arguments))
            return BuiltNetwork(network, size=spec.size)
        if spec.library == "timm":
            return _build_timm(spec, arguments)
        if spec.library == "torchvision":
            return _build_torchvision(spec, arguments)
        return _build_user_network(spec, num_classes)
    except ModelError:
        raise
    except Exception as error:  # libraries raise errors of many types
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if spec.arguments.get("pretrained") and _is_failed_download(error):
            raise ModelError(
                f"{spec.text}: its weights are not on this machine and could not be downloaded "
                f"({reason}). {_download_advice(spec)}"
            ) from error
        raise ModelError(
            f"{spec.text} could not be built ({reason}). Pretrained weights must be on this "
            "machine, and the arguments must be those that the network takes."
        ) from error


def _is_failed_download(error: BaseException | None) -> bool:
    """Whether an error, or one that it follows from, is one of a connection or of a file."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "requests")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _download_advice(spec: NetworkSpec) -> str:
    """Say where the pretrained weights of a network are, and where to put them."""
    if spec.library == "torchvision":
        from torchvision import models

        url = models.get_model_weights(spec.name)[_weights_name(spec)].url
        place = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        return f"Download {url} where there is internet, and put the file at {place}."
    import timm

    config = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    repository = "timm" if config is None else config.hf_hub_id or config.url
    return (
        f'Where there is internet, load it once: python -c "import timm; '
        f"timm.create_model('{spec.name}', pretrained=True)\". Then copy the cache of Hugging Face "
        f"({os.environ.get('HF_HOME', '~/.cache/huggingface')}) here. Or download "
        f"model.safetensors from https://huggingface.co/{repository}, and name it: --teacher "
        f"timm:{spec.name} --teacher-weights model.safetensors."
    )


def _weights_name(spec: NetworkSpec) -> str:
    """The name of the pretrained weights of torchvision that a spec asks for."""
    pretrained = spec.arguments["pretrained"]
    return pretrained if isinstance(pretrained, str) else "DEFAULT"


def _build_timm(spec: NetworkSpec, arguments: dict[str, Any]) -> BuiltNetwork:
    import timm

    if file_arguments := sorted(_FILE_ARGUMENTS & arguments.keys()):
        raise ModelError(
            f"{spec.text}: with {', '.join(file_arguments)} timm opens a file, which could run "
            "code. Give weights with --teacher-weights FILE."
        )
    config = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    if spec.size is not None and config is not None and config.fixed_input_size:
        arguments.setdefault("img_size", spec.size)
    if not arguments.get("num_classes", None if config is None else config.num_classes):
        # Some networks have no classifier by default.
        arguments["num_classes"] = DEFAULT_CLASSES
    network = timm.create_model(spec.name, **arguments)
    built_config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    size = spec.size or arguments.get("img_size")
    if not size and (arguments.get("pretrained") or built_config.get("fixed_input_size")):
        size = built_config["input_size"][-1]
    if not arguments.get("pretrained"):
        return BuiltNetwork(network, size=size)
    trained_size = tuple(built_config["input_size"][1:])
    return BuiltNetwork(network, built_config["mean"], built_config["std"], size, trained_size)


def _build_torchvision(spec: NetworkSpec, arguments: dict[str, Any]) -> BuiltNetwork:
    from torchvision import models

    if not arguments.pop("pretrained", False):
        if spec.size and spec.name.startswith("vit"):
            arguments.setdefault("image_size", spec.size)
        network = models.get_model(spec.name, **arguments)
        has_fixed_size = spec.name.startswith(("vit", "swin", "maxvit"))
        size = arguments.get("image_size", 224 if has_fixed_size else None)
        return BuiltNetwork(network, size=spec.size or size)
    num_classes = arguments.pop("num_classes", None)
    weights = models.get_model_weights(spec.name)[_weights_name(spec)]
    network = models.get_model(spec.name, **arguments, weights=weights)
    if num_classes is not None:
        similar = _pretrained_arguments(spec) | arguments
        _replace_classifier(
            network, models.get_model(spec.name, num_classes=num_classes, **similar)
        )
    transforms = weights.transforms()
    trained_size = arguments.get("image_size", transforms.crop_size[0])
    return BuiltNetwork(
        network, tuple(transforms.mean), tuple(transforms.std), spec.size or trained_size,
        (trained_size, trained_size),
    )  # fmt: skip


def drop_pretrained(spec: NetworkSpec) -> NetworkSpec:
    """Ask for a pretrained network's structure with fresh weights.

    The pretrained networks of torchvision differ from the others in more than weights: in the size
    of images, a transform of the input, and auxiliary heads.
    """
    arguments = dict(spec.arguments)
    if arguments.pop("pretrained", False) and spec.library == "torchvision":
        arguments = _pretrained_arguments(spec) | arguments
    return replace(spec, arguments=arguments)


def _pretrained_arguments(spec: NetworkSpec) -> dict[str, Any]:
    """Arguments with which torchvision builds the pretrained form of a network."""
    from torchvision import models

    name = spec.name
    if name in ("googlenet", "inception_v3"):
        heads = {"aux_logits": False} if name == "googlenet" else {}
        return {"transform_input": True, "init_weights": False} | heads
    if name.startswith("vit_"):
        weights = models.get_model_weights(name)[_weights_name(spec)]
        return {"image_size": weights.meta["min_size"][0]}
    return {}


def _replace_classifier(network: nn.Module, other: nn.Module) -> None:
    """Replace the layers whose shapes differ from those in a network with other classes."""
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    differing = {k for k, v in network.state_dict().items() if v.shape != shapes[k]}
    for path in {key.rpartition(".")[0] for key in differing}:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, other.get_submodule(path))


def _build_user_network(spec: NetworkSpec, num_classes: int | None) -> BuiltNetwork:
    network = prepare_user_network(call_user_code(spec, num_classes))
    if isinstance(network, Normalized):
        mean, std = (tuple(t.flatten().tolist()) for t in (network.mean, network.std))
        return BuiltNetwork(network.network, mean, std, spec.size or network.size)
    return BuiltNetwork(network, size=spec.size)
