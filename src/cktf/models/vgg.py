"""VGG networks for 32x32 and 64x64 images, state-dict compatible with the published family.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", ICLR 2015, arXiv 1409.1556, table 1 (configurations A, B, D and E; 8 layers from Tian
et al., "Contrastive Representation Distillation", ICLR 2020). Departures, as published: every
convolution has a BN behind it, one linear layer follows a global pooling, and the fourth pooling
is there for images of 64 pixels and not for those of 32. Here the map decides it: one of 8 pixels
or more is pooled, so that other sizes work too. Activations are modules and never in place, so that
every map can be read by its path.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from cktf.errors import ModelError
from cktf.models.feature_paths import FeaturePaths
from cktf.models.initialization import initialize_classifier, initialize_convolutions

_WIDTHS = (64, 128, 256, 512, 512)
_MODULES_PER_LAYER = 3
# Three poolings come in any case; a fourth where the map before it has this many pixels.
_SMALLEST_IMAGE = 8
_SMALLEST_POOLED = 8


def _block(in_channels: int, out_channels: int, layers: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for k in range(layers):
        convolution = nn.Conv2d(out_channels if k else in_channels, out_channels, 3, padding=1)
        modules += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*modules)


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with pooling between them, a linear classifier.

    The first block, all that comes before the first pooling, is the stem; the other four are the
    stages.

    Args:
        layers: convolutions of each of the five blocks.
        num_classes: outputs of the classifier.
    """

    def __init__(self, layers: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        channels = (3, *_WIDTHS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(channels[k], channels[k + 1], count) for k, count in enumerate(layers)
        )
        self.pool0 = nn.MaxPool2d(2)
        self.pool1 = nn.MaxPool2d(2)
        self.pool2 = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2)
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_WIDTHS[4], num_classes)
        initialize_classifier(self.classifier)
        initialize_convolutions(self)

    @property
    def feature_paths(self) -> FeaturePaths:
        """Where the stem, stages, blocks (one a convolution) and embedding are."""
        activations = {
            f"block{k}": tuple(f"block{k}.{_MODULES_PER_LAYER * i + 2}" for i in range(layers))
            for k, layers in enumerate(self.layers)
            if k
        }
        return FeaturePaths(
            stem="block0",
            stages=tuple(activations),
            blocks=tuple(activations.values()),
            preacts=tuple(f"{paths[-1]}:input" for paths in activations.values()),
            embedding="classifier:input",
            pool_globally=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes].

        Raises:
            ModelError: images of less than 8 pixels a side.
        """
        if min(x.shape[-2:]) < _SMALLEST_IMAGE:
            raise ModelError(
                f"A VGG halves its images three times, so they have at least {_SMALLEST_IMAGE} "
                f"pixels a side; these have {x.shape[-2]} x {x.shape[-1]}. Enlarge them, or take a "
                "network that does not pool, such as resnet8."
            )
        x = self.pool0(self.block0(x))
        x = self.pool1(self.block1(x))
        x = self.pool2(self.block2(x))
        x = self.block3(x)
        if min(x.shape[-2:]) >= _SMALLEST_POOLED:
            x = self.pool3(x)
        return self.classifier(self.pool4(self.block4(x)).flatten(1))  # type: ignore[no-any-return]
