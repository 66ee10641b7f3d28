"""Factor transfer as an objective: see `cktf.functional.ft`."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.functional import ft_loss
from cktf.objectives.base import BuildContext, Loss, Objective, Phase, single_term_loss
from cktf.objectives.pairs import require_not_none, stage_maps
from cktf.taps import Features

_SLOPE = 0.1


def _conv_layers(layer: type[nn.Module], *channels: int, norm: bool = False) -> nn.Sequential:
    """Build 3x3 layers from one number of channels to the next, each with an activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers.append(layer(before, after, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers.append(nn.LeakyReLU(_SLOPE))
    return nn.Sequential(*layers)


class Paraphraser(Objective):
    """An auto-encoder of the teacher's last map, whose code is the factor; minimizes its error.

    Args:
        channels: of the teacher's map.
        factor: channels of the code.
    """

    requires = frozenset({"stages"})
    capturable = True

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.encoder = _conv_layers(nn.Conv2d, channels, channels, factor, factor)
        self.decoder = _conv_layers(nn.ConvTranspose2d, factor, factor, channels, channels)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """Mean squared error of the teacher's map."""
        stage = require_not_none(teacher, "FT's teacher").stages[-1].detach().float()
        reconstruction = self.decoder(self.encoder(stage))
        return single_term_loss("paraphraser", F.mse_loss(reconstruction.float(), stage))


class FT(Objective):
    """Follow the teacher's paraphrase of its last map, through a translator.

    Mean of `|F(s) − F(t)|` over factors, with `F(f)` the rows of unit length of the mean of f² over
    channels. First the paraphraser is trained alone; then it is frozen.

    Args:
        student_channels, teacher_channels: of the last stage's maps.
        factor: channels of the factors, as a fraction of the teacher's.
        init_lr: learning rate of the paraphraser; the published code takes that of the network for
            all but the CIFAR ResNets and wide ResNets.
    """

    title = "Factor transfer"
    paper = "arXiv 1802.04977"
    default_weight = 200.0
    requires = frozenset({"stages"})
    capturable = True

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        factor: float = 0.5,
        init_lr: float = 0.01,
    ) -> None:
        super().__init__()
        size = int(factor * teacher_channels)
        if size < 1:
            raise MethodError(
                f"FT's factor is a part of the teacher's {teacher_channels} channels, at least one "
                f"of them; given {factor}."
            )
        self.init_lr = init_lr
        self.paraphraser = Paraphraser(teacher_channels, size)
        self.translator = _conv_layers(
            nn.Conv2d, student_channels, student_channels, size, size, norm=True
        )

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks with stages."""
        students, teachers = stage_maps("FT", *context.both_features("FT"))
        return cls(students[-1].shape[1], teachers[-1].shape[1], **options)

    def phases(self) -> list[Phase]:
        """The paraphraser alone."""
        return [Phase("ft", self.paraphraser, self.init_lr, trains_student=False)]

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        students, teachers = stage_maps("FT", student, teacher)
        with torch.no_grad():
            factor: Tensor = self.paraphraser.encoder(teachers[-1].float())
        return single_term_loss("ft", ft_loss(self.translator(students[-1].float()), factor))
