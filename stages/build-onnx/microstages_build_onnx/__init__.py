"""build-onnx: a model folder becomes an ONNX model that ONNX Runtime GenAI runs, quantized as asked and compared."""

__version__ = "0.1.0"
