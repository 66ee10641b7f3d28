"""Export a trained network to ONNX, in float32 and int8, checked against the original."""

from cktf.export.network import INPUT, OUTPUT, OnnxNetwork, write_int8, write_onnx
from cktf.export.run import ExportedNetwork, export_run

__all__ = [
    "INPUT", "OUTPUT", "ExportedNetwork", "OnnxNetwork", "export_run", "write_int8", "write_onnx",
]  # fmt: skip
