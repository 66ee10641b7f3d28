"""ResNets with four stages for 32x32 and 64x64 images, state-dict compatible with the published.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385,
table 1. Departures, as published: the stem is one 3x3 convolution of stride 1 without a pooling,
because the images are small; a bottleneck has its stride in the 3x3 convolution; there are 10
layers too. Activations are modules and never in place, so that every map can be read by its path.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from cktf.models.feature_paths import FeaturePaths, layer_feature_paths
from cktf.models.initialization import initialize_convolutions

_WIDTHS = (64, 128, 256, 512)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, C_in, H, W] -> [B, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, after its activation."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 and a shortcut.

    [B, C_in, H, W] -> [B, 4 * width, H/stride, W/stride].
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, after its activation."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))  # type: ignore[no-any-return]


class FourStageResNet(nn.Module):
    """A stem of one convolution, four stages of residual blocks, a linear classifier.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks: how many of them each of the four stages has.
        num_classes: outputs of the classifier.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.blocks_per_stage = tuple(blocks)
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.relu = nn.ReLU()
        widths = [_WIDTHS[0], *(block.expansion * width for width in _WIDTHS)]
        stages = [
            nn.Sequential(
                block(widths[k], _WIDTHS[k], stride=2 if k else 1),
                *(block(widths[k + 1], _WIDTHS[k], stride=1) for _ in range(count - 1)),
            )
            for k, count in enumerate(blocks)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[-1], num_classes)
        initialize_convolutions(self)

    @property
    def feature_paths(self) -> FeaturePaths:
        """Module paths of stem, stages, blocks and embedding."""
        counts = self.blocks_per_stage
        return layer_feature_paths(counts, "relu", "linear:input", pool_globally=True)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


build_basic_resnet = partial(FourStageResNet, BasicBlock)
build_bottleneck_resnet = partial(FourStageResNet, Bottleneck)
