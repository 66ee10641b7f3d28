"""MobileNetV2 for 32x32 images, state-dict compatible with the published family.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv
1801.04381, table 2, at half its width; form for small images as published with Tian et al.,
"Contrastive Representation Distillation", ICLR 2020. Departures, as published: ReLU for ReLU6, an
expanding convolution in the first block too, and stride 1 in the second group of blocks.
Activations are modules and never in place, so that every map can be read by its path; the last
pooling is global, so that other sizes than 32 pixels work.
"""

from torch import Tensor, nn

from cktf.models.feature_paths import FeaturePaths
from cktf.models.initialization import initialize_classifier, initialize_convolutions

_STEM = 32
# Expansion, channels, blocks and stride of each group.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST = 1280


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


class InvertedResidual(nn.Module):
    """Expand, convolve every channel by itself, project without an activation.

    [B, C_in, H, W] -> [B, C_out, H/stride, W/stride]; with a shortcut around it where the two
    shapes agree.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_convolution(in_channels, wide, 1),
            nn.ReLU(),
            *_convolution(wide, wide, 3, stride, groups=wide),
            nn.ReLU(),
            *_convolution(wide, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, which no activation follows."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """A stem of stride 2, seven groups of inverted residuals, a wide 1x1 convolution, a classifier.

    Groups of one resolution are one stage, of which there are four. Its bottlenecks are linear:
    `preacts` are the stages themselves.

    Args:
        num_classes: outputs of the classifier.
        factor: how many times wider than the paper's the stem and the groups are; the last
            convolution keeps 1280 channels.
    """

    def __init__(self, num_classes: int, factor: float = 0.5) -> None:
        super().__init__()
        channels = int(_STEM * factor)
        self.conv1 = nn.Sequential(*_convolution(3, channels, 3, stride=2), nn.ReLU())
        groups = []
        for expansion, width, count, stride in _GROUPS:
            blocks, out = [], int(width * factor)
            for k in range(count):
                blocks.append(InvertedResidual(channels, out, 1 if k else stride, expansion))
                channels = out
            groups.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*groups)
        self.conv2 = nn.Sequential(*_convolution(channels, _LAST, 1), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        classifier = nn.Linear(_LAST, num_classes)
        self.classifier = nn.Sequential(classifier)
        initialize_classifier(classifier)
        initialize_convolutions(self)

    @property
    def feature_paths(self) -> FeaturePaths:
        """Module paths of stem, stages, blocks and embedding."""
        stages: list[list[str]] = [[]]
        for k, (_, _, count, stride) in enumerate(_GROUPS):
            if stride > 1:
                stages.append([])
            stages[-1] += [f"blocks.{k}.{i}" for i in range(count)]
        ends = tuple(stage[-1] for stage in stages)
        return FeaturePaths(
            stem="conv1",
            stages=ends,
            blocks=tuple(map(tuple, stages)),
            preacts=ends,
            embedding="classifier.0:input",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes]."""
        x = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]
