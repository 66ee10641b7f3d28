"""How torchvision's networks differ between their pretrained form and the one without weights."""

from typing import Any

from torch import nn


def implied(name: str) -> dict[str, Any]:
    """What torchvision builds a pretrained network with."""
    from torchvision import models

    if name in ("googlenet", "inception_v3"):
        heads = {"aux_logits": False} if name == "googlenet" else {}
        return {"transform_input": True, "init_weights": False} | heads
    if name.startswith("vit_"):
        return {"image_size": models.get_model_weights(name).DEFAULT.meta["min_size"][0]}
    return {}


def take_classifier(network: nn.Module, fresh: nn.Module) -> None:
    """Replace the layers of a network that a like one of other classes has in another shape."""
    shapes = {key: value.shape for key, value in fresh.state_dict().items()}
    others = {k for k, v in network.state_dict().items() if v.shape != shapes[k]}
    for path in {key.rpartition(".")[0] for key in others}:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, fresh.get_submodule(path))
