"""ShuffleNets of both versions for 32x32 images, state-dict compatible with the published family.

Sources: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", CVPR 2018, arXiv 1707.01083, figure 2 and table 1 (3 groups, the first version); Ma et
al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, arXiv
1807.11164, figure 3 and table 5 (the second). Departures, as published for small images: the stem
is one 1x1 convolution of stride 1 without a pooling, and the first version has an activation after
the depthwise convolution too. Activations are modules and never in place, so that every map can be
read by its path; the last pooling is global, so that other sizes than 32 pixels work.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from cktf.models.feature_paths import FeaturePaths, layer_feature_paths

_STEM = 24
_BLOCKS = (4, 8, 4)
_GROUPS_V1 = 3
# Channels of the three stages, by version.
_WIDTHS = {1: (240, 480, 960), 2: (116, 232, 464)}
_LAST_V2 = 1024


def _convolution1x1(in_channels: int, out_channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def channel_shuffle(feature_map: Tensor, groups: int) -> Tensor:
    """Take a channel of each group in turn: [B, groups * n, H, W] -> [B, n * groups, H, W].

    >>> channel_shuffle(torch.arange(6).view(1, 6, 1, 1), groups=2).flatten().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    batch, channels, height, width = feature_map.shape
    grouped = feature_map.reshape(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(batch, channels, height, width)


class GroupedBlock(nn.Module):
    """The unit of the first version: grouped 1x1 convolutions around a depthwise one.

    The shortcut is added, or, with stride 2, pooled and put behind the new channels:
    [B, C_in, H, W] -> [B, C_out, H/stride, W/stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        new = out_channels - in_channels if stride > 1 else out_channels
        inner = new // 4
        # The stem's few channels are not grouped.
        self.groups = 1 if in_channels == _STEM else _GROUPS_V1
        self.conv1 = _convolution1x1(in_channels, inner, self.groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = _depthwise(inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = _convolution1x1(inner, new, _GROUPS_V1)
        self.bn3 = nn.BatchNorm2d(new)
        self.shortcut = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, after its activation."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(channel_shuffle(out, self.groups))))
        out, shortcut = self.bn3(self.conv3(out)), self.shortcut(x)
        out = out + shortcut if self.stride == 1 else torch.cat([out, shortcut], dim=1)
        return self.relu(out)  # type: ignore[no-any-return]


class SplitBlock(nn.Module):
    """The unit of the second version: one half of the channels passes, the other is convolved.

    [B, C, H, W] -> [B, C, H, W]. The input comes out of an activation, so the half that passes is
    not changed by the activation behind the shuffle; there it gives the whole map one place before
    and one after it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _convolution1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = _depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _convolution1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, after its activation."""
        passed, out = x.chunk(2, dim=1)
        out = self.relu1(self.bn1(self.conv1(out)))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        out = channel_shuffle(torch.cat([passed, out], dim=1), groups=2)
        return self.relu(out)  # type: ignore[no-any-return]


class DownBlock(nn.Module):
    """The unit of the second version that halves: both of its branches are convolved.

    [B, C_in, H, W] -> [B, C_out, H/2, W/2].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = _depthwise(in_channels, stride=2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = _convolution1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _convolution1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = _depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _convolution1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, after its activation."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.relu3(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        out = channel_shuffle(torch.cat([left, right], dim=1), groups=2)
        return self.relu(out)  # type: ignore[no-any-return]


class ShuffleNet(nn.Module):
    """A stem of one 1x1 convolution, three stages, a linear classifier.

    The second version has a wide 1x1 convolution before the classifier.

    Args:
        version: 1 has stages of `GroupedBlock`, 2 of `DownBlock` and `SplitBlock`.
        num_classes: outputs of the classifier.
    """

    def __init__(self, version: Literal[1, 2], num_classes: int) -> None:
        super().__init__()
        self.version = version
        self.conv1 = _convolution1x1(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU()
        widths, stages = (_STEM, *_WIDTHS[version]), []
        for before, width, count in zip(widths, widths[1:], _BLOCKS, strict=False):
            first = GroupedBlock(before, width, 2) if version == 1 else DownBlock(before, width)
            rest = (
                GroupedBlock(width, width, 1) if version == 1 else SplitBlock(width)
                for _ in range(count - 1)
            )
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3 = stages
        if version == 2:
            self.conv2 = _convolution1x1(widths[-1], _LAST_V2)
            self.bn2 = nn.BatchNorm2d(_LAST_V2)
            self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_LAST_V2 if version == 2 else widths[-1], num_classes)

    @property
    def feature_paths(self) -> FeaturePaths:
        """Module paths of stem, stages, blocks and embedding."""
        return layer_feature_paths(_BLOCKS, "relu", "linear:input")

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.version == 2:
            x = self.relu2(self.bn2(self.conv2(x)))
        return self.linear(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]
