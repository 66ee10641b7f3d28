"""A network written as an ONNX file, its int8 form, and either as ONNX Runtime computes it."""

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cktf.errors import CktfError, ModelError, RecipeError
from cktf.files import write_atomically
from cktf.taps import eval_mode
from cktf.user_paths import expand_user_path

INPUT, OUTPUT = "images", "logits"
_LIBRARIES = "onnx", "onnxscript", "onnxruntime"
# Products, and what joins them; sums and normalizations stay in float32.
_INT8 = ["Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool"]
# Logits may differ by this part of the largest one, or of 1: sums in another order do far less,
# another operation far more.
_TOLERANCE = 1e-3


class OnnxNetwork:
    """An ONNX file as a function from images [B, C, H, W] in [0, 1] to logits, on the CPU.

    ONNX Runtime takes as many threads as PyTorch has.
    """

    def __init__(self, content: bytes | Path) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            content if isinstance(content, bytes) else str(content),
            options,
            providers=["CPUExecutionProvider"],
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        (logits,) = self._session.run([OUTPUT], {INPUT: images.cpu().numpy()})
        return torch.from_numpy(logits)


def require_onnx() -> None:
    """Refuse where the libraries are not installed.

    Raises:
        RecipeError: what to install.
    """
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise RecipeError(
            [f"Export needs {', '.join(missing)}, not here: pip install 'cktf[export]'."]
        )


def write_onnx(
    network: nn.Module, images: Tensor, path: str | Path, about: Mapping[str, str] | None = None
) -> None:
    """Write a network on the CPU as an ONNX file, if ONNX Runtime computes the same from it.

    The file takes `images`, float32 [batch, C, H, W] in [0, 1], any number at a time, and gives
    `logits`. What the network does to them first, as its mean, std and size, is in the file.

    Args:
        network: from images to logits; written as it is in eval mode.
        images: [B, C, H, W] with B of 2 or more, by which the network is traced and the file tried.
        path: the file, replaced if it is there.
        about: kept in the file as its metadata.

    Raises:
        ModelError: a network that has no form in ONNX, or one whose file computes something else.
        RecipeError: libraries that are not installed.
    """
    require_onnx()
    import onnx

    with eval_mode(network), torch.no_grad():
        proto = _traced(network, images)
        expected = network(images).float()
    onnx.helper.set_model_props(proto, dict(about or {}))
    content = proto.SerializeToString()
    _check(content, images, expected)
    write_atomically(expand_user_path(path), content)


def _check(content: bytes, images: Tensor, expected: Tensor) -> None:
    """Whether a file computes the network's logits, of other numbers of images too."""
    parts = images[:1], images[1:]
    try:
        computed = OnnxNetwork(content)
        found = torch.cat([computed(part) for part in parts])
        difference = float((found - expected).abs().max())
    except Exception:
        # ONNX Runtime's errors have no base of their own.
        difference = math.inf
    largest = float(expected.abs().max())
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise ModelError(
            f"The ONNX file would not compute what the network does: logits of up to {largest:.3g} "
            f"differ by up to {difference:.3g}. Steps that depend on chance, on values or on the "
            "number of images are written as they were traced; write the forward without them."
        )


def _traced(network: nn.Module, images: Tensor) -> Any:
    """The network as an `onnx.ModelProto`, for any number of images."""
    with warnings.catch_warnings():
        # PyTorch's own, of what it will change: nothing that a user could.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network,
                (images,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise ModelError(
                f"PyTorch cannot write {type(network).__name__} as ONNX: {_first_line(cause)} Its "
                "forward has to be traceable by torch.export, for any number of images."
            ) from error
    assert program is not None
    return program.model_proto


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__}."


def write_int8(source: str | Path, path: str | Path, images: Iterator[Tensor]) -> None:
    """Write an ONNX file's network with products of int8 weights and activations.

    Weights have a scale for each output channel; that of activations is from their range on images.

    Args:
        source: a file by `write_onnx`.
        path: the file, replaced if it is there.
        images: batches of real images [B, C, H, W], a few hundred in all.

    Raises:
        ModelError: what ONNX Runtime cannot quantize.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, object] | None:
            batch = next(images, None)
            return None if batch is None else {INPUT: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            quant_pre_process(expand_user_path(source), prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared, quantized, Reader(), per_channel=True, op_types_to_quantize=_INT8
            )
        except CktfError:
            # Of the images, which are read meanwhile.
            raise
        except Exception as error:
            # Its errors have no base of their own.
            raise ModelError(
                f"ONNX Runtime cannot write {source} in int8: {_first_line(error)} The float32 "
                "file is as it was; ship that, or quantize it with another tool."
            ) from error
        write_atomically(expand_user_path(path), quantized.read_bytes())
