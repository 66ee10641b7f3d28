"""ResNets for 32x32 images, state-dict compatible with the published CIFAR family.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385,
section 4.2; widths of the `x4` networks from Tian et al., "Contrastive Representation
Distillation", ICLR 2020; blocks of a single convolution (resnet5, resnet5x4, resnet17x4) from Zhao
et al., "A Contrastive Knowledge Transfer Framework for Model Compression and Transfer Learning",
ICASSP 2023. Departures: activations are modules and never in place, so that every map can be read
by its path; the last pooling is global, so that other sizes than 32 pixels work.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from cktf.models.feature_paths import FeaturePaths, layer_feature_paths
from cktf.models.initialization import initialize_convolutions


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class SingleBlock(nn.Module):
    """One 3x3 convolution and a shortcut: [B, C_in, H, W] -> [B, C_out, H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, after its activation."""
        return self.relu1(self.bn1(self.conv1(x)) + self.downsample(x))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, C_in, H, W] -> [B, C_out, H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, after its activation."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return self.relu2(out)  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """A stem of one convolution, three stages of residual blocks, a linear classifier.

    Args:
        depth: layers with weights, 6n + 2; with blocks of one convolution 3n + 2.
        widths: channels of the stem and of the three stages.
        num_classes: outputs of the classifier.
        convolutions: 3x3 convolutions of a block, 1 or 2.
    """

    def __init__(
        self, depth: int, widths: Sequence[int], num_classes: int, convolutions: int = 2
    ) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.blocks_per_stage = (depth - 2) // (3 * convolutions)
        stem, *stages = widths
        self.conv1 = _conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(stem, stages[0], stride=1)
        self.layer2 = self._stage(stages[0], stages[1], stride=2)
        self.layer3 = self._stage(stages[1], stages[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[2], num_classes)
        initialize_convolutions(self)

    def _stage(self, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        block = SingleBlock if self.convolutions == 1 else BasicBlock
        rest = (block(out_channels, out_channels, 1) for _ in range(self.blocks_per_stage - 1))
        return nn.Sequential(block(in_channels, out_channels, stride), *rest)

    @property
    def feature_paths(self) -> FeaturePaths:
        """Module paths of stem, stages, blocks and embedding."""
        activation = f"relu{self.convolutions}"
        return layer_feature_paths([self.blocks_per_stage] * 3, activation, "fc:input")

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]
