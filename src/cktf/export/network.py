"""Write a network as an ONNX file, in float32 or int8, and run the file with ONNX Runtime."""

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cktf.errors import CktfError, ModelError, RecipeError, install_command
from cktf.files import write_atomically
from cktf.taps import eval_mode
from cktf.user_paths import expand_user_path

INPUT, OUTPUT = "images", "logits"
_LIBRARIES = "onnx", "onnxscript", "onnxruntime"
_PRODUCTS = ["Conv", "Gemm", "MatMul"]
# Products and the operations between them; the rest stays in float32.
_INT8 = [*_PRODUCTS, "Relu", "Clip", "MaxPool"]
# Ranges of activations are means over batches of this size. The range of all images leaves too few
# of the 256 steps for most values.
_CALIBRATION_BATCH = 16
# Largest difference of logits, relative to the largest logit or to 1. Another order of summation
# makes a far smaller difference, another operation a far larger one.
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
    """Raise RecipeError if a library for export is not installed."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise RecipeError([f"Export needs {', '.join(missing)}: {install_command('export')}."])


def write_onnx(
    network: nn.Module,
    images: Tensor,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
) -> None:
    """Write a network on the CPU as an ONNX file, if ONNX Runtime computes the same with it.

    The file's input is `images`, float32 [batch, C, H, W] in [0, 1] with any batch size; its output
    is `logits`. It includes the network's normalization and resizing.

    Args:
        network: from images to logits; exported in eval mode.
        images: [B, C, H, W] with B of 2 or more, for tracing the network and checking the file.
        path: the file, replaced if it exists; its folder is made.
        metadata: stored in the file.
        opset: version of the ONNX operators; by default PyTorch's.

    Raises:
        ModelError: ONNX cannot express the network, or the file computes something else.
        RecipeError: a library is missing, or PyTorch does not write the opset.
    """
    require_onnx()
    import onnx

    with eval_mode(network), torch.no_grad():
        proto = _trace(network, images, opset)
        expected = network(images).float()
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    content = proto.SerializeToString()
    try:
        # Another batch size than the traced one must work too.
        run = OnnxNetwork(content)
        logits = torch.cat([run(images[:1]), run(images[1:])])
        difference = float((logits - expected).abs().max())
    except Exception:
        # ONNX Runtime's errors have no common class.
        difference = math.inf
    largest = float(expected.abs().max())
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise ModelError(
            f"The ONNX file would not compute what the network does: logits of up to {largest:.3g} "
            f"differ by up to {difference:.3g}. Tracing freezes what depends on chance, on values "
            "or on the batch size; write the forward method without that."
        )
    path = expand_user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _trace(network: nn.Module, images: Tensor, opset: int | None) -> Any:
    """Trace the network to an `onnx.ModelProto` for any batch size."""
    with warnings.catch_warnings():
        # PyTorch's deprecation warnings about its own code.
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
                opset_version=opset,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise ModelError(
                f"PyTorch cannot write {type(network).__name__} as ONNX: {_first_line(cause)} Its "
                "forward method must be traceable by torch.export for any batch size."
            ) from error
    assert program is not None
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if not entry.domain)
    if opset not in (None, written):
        # PyTorch writes another one without a word.
        raise RecipeError(
            [
                f"opset {opset} is none that this PyTorch writes for the network: it would be "
                f"{written}. Take {written} or a later one; onnx.version_converter may convert the "
                "file to an earlier one."
            ]
        )
    return proto


def _first_line(error: BaseException) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0].strip()}."


def write_int8(source: str | Path, path: str | Path, images: Iterator[Tensor]) -> None:
    """Quantize the weights and activations of an ONNX file's network to int8.

    Weights are signed and have a scale per output channel; activations are unsigned, which x86
    processors multiply faster, and have a scale and a zero point from their mean range over batches
    of the images. The first layer, which has few weights, and the logits stay in float32.

    Args:
        source: a file by `write_onnx`.
        path: the file, replaced if it exists.
        images: batches of real images [B, C, H, W], a few hundred in all, of all classes mixed.

    Raises:
        ModelError: ONNX Runtime cannot quantize the network.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = (part for batch in images for part in torch.split(batch, _CALIBRATION_BATCH))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, object] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            # Folds BatchNorm into convolutions, and infers shapes.
            quant_pre_process(expand_user_path(source), prepared, skip_symbolic_shape=True)
            nodes = onnx.load(prepared).graph.node
            layers = [node.name for node in nodes if node.op_type in _PRODUCTS]
            quantize_static(
                prepared,
                quantized,
                Reader(),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                op_types_to_quantize=_INT8,
                nodes_to_exclude=layers[:1] if len(layers) > 1 else [],
                extra_options={
                    "CalibMovingAverage": True,
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                },
            )
        except CktfError:
            # Raised by the iterator of images.
            raise
        except Exception as error:
            raise ModelError(
                f"ONNX Runtime cannot write {source} in int8: {_first_line(error)} Use the float32 "
                "file, or quantize it with another tool."
            ) from error
        write_atomically(expand_user_path(path), quantized.read_bytes())
