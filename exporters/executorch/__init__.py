"""Decoder models as ExecuTorch programs, written from a `DecoderSpec` and a checkpoint's matrices."""
