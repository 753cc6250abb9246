"""Decoder models as ONNX graphs, written straight from a `DecoderSpec` and a checkpoint's matrices."""
