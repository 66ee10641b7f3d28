"""Wide residual networks for 32x32 images, state-dict compatible with the published family.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.
Departures: activations are modules and never in place, so that every map can be read by its path;
the last pooling is global, so that other sizes than 32 pixels work.
"""

from torch import Tensor, nn

from cktf.models.feature_paths import FeaturePaths
from cktf.models.initialization import initialize_convolutions


class PreActivationBlock(nn.Module):
    """BN, ReLU, convolution, twice, and a shortcut around them.

    Where the width or the stride changes, the shortcut is a convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's map, the sum that the next BN reads."""
        activated = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return shortcut + out  # type: ignore[no-any-return]


class _Stage(nn.Module):
    # The published keys have this level: block1.layer.0.conv1.weight.
    def __init__(self, in_channels: int, out_channels: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = (PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(PreActivationBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A bare convolution as stem, three stages of pre-activation blocks, BN, ReLU, classifier.

    Args:
        depth: layers with weights, 6n + 4.
        factor: how many times wider than 16, 32, 64 channels the stages are.
        num_classes: outputs of the classifier.
    """

    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        self.blocks_per_stage = blocks = (depth - 4) // 6
        widths = [16 * factor, 32 * factor, 64 * factor]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(16, widths[0], 1, blocks)
        self.block2 = _Stage(widths[0], widths[1], 2, blocks)
        self.block3 = _Stage(widths[1], widths[2], 2, blocks)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        nn.init.zeros_(self.fc.bias)
        initialize_convolutions(self)

    @property
    def feature_paths(self) -> FeaturePaths:
        """Module paths of stem, stages, blocks and embedding."""
        stages = ("block1", "block2", "block3")
        return FeaturePaths(
            stem="conv1",
            stages=stages,
            blocks=tuple(
                tuple(f"{s}.layer.{i}" for i in range(self.blocks_per_stage)) for s in stages
            ),
            preacts=("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"),
            embedding="fc:input",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.avgpool(self.relu(self.bn1(x))).flatten(1))  # type: ignore[no-any-return]
