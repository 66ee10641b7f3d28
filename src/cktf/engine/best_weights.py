"""The weights of the best epoch, where images were held out of the training set to choose it."""

from typing import Any

from torch import Tensor, nn


class BestWeights:
    """Weights of the epoch with the highest accuracy on held-out images, the earliest of equals.

    Attributes:
        epoch: the best epoch so far; 0 before the first.
        top1: its accuracy on the held-out images, in per cent.
    """

    def __init__(self) -> None:
        self.epoch, self.top1 = 0, -1.0
        self._weights: dict[str, Tensor] = {}

    def update(self, epoch: int, top1: float, network: nn.Module) -> None:
        """Keep an epoch's weights if they are the best."""
        if top1 > self.top1:
            self.epoch, self.top1 = epoch, top1
            self._weights = {name: t.detach().clone() for name, t in network.state_dict().items()}

    def load_into(self, network: nn.Module) -> None:
        """Give a network the weights of the best epoch."""
        network.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, accuracy and weights, for a checkpoint."""
        return {"epoch": self.epoch, "top1": self.top1, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.epoch, self.top1, self._weights = state["epoch"], state["top1"], state["weights"]
