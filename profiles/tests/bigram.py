"""A real, if small, language model for tests of the protocol: bigram counts with real probabilities."""

import itertools
import time

import numpy as np
from safetensors.numpy import save_file

from edge.core.bundle import KvCache, Manifest, open_bundle, seal
from edge.core.session import OperatorTime, SessionOptions


class Bigram:
    """log p(next | last) from counts; `naps` are seconds that each decode step takes beside that."""

    vocab_size = 20
    context_length = 64

    def __init__(self, options=None, naps=(0.0,)):
        self.options, self.naps = options or SessionOptions(), itertools.cycle(naps)
        counts = np.random.default_rng(0).integers(1, 50, (20, 20)).astype(np.float32)
        self.table = np.log(counts / counts.sum(axis=1, keepdims=True))
        self.calls, self.closed = [], False

    def prefill(self, tokens, *, all_logits=False):
        self.calls.append(("prefill", tuple(tokens)))
        logits = self.table[list(tokens)]
        return logits if all_logits else logits[-1:]

    def extend(self, tokens, *, all_logits=False):
        self.calls.append(("extend", tuple(tokens)))
        logits = self.table[list(tokens)]
        return logits if all_logits else logits[-1:]

    def decode(self, token):
        self.calls.append(("decode", token))
        time.sleep(next(self.naps))
        return self.table[[token]]

    def end_profile(self):
        assert self.options.profile_path
        return [OperatorTime("n", "Gather", "embed", len(self.calls), 1000)]

    def close(self):
        self.closed = True


def make_bundle(folder, runtime="bigram", samples=None, gates=None):
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    if samples is not None:
        save_file(samples, folder / "samples.safetensors")
    manifest = Manifest(
        name="bigram",
        architecture="bigram",
        target="cpu",
        runtime=runtime,
        kernels="edge",
        artefact="model.bin",
        context_length=64,
        vocab_size=20,
        eos_token_ids=[0],
        bos_token_id=None,
        kv_cache=KvCache(1, 1, 1),
        source="nowhere",
        source_sha256="0",
        recipe={"name": "int4"},
        encodings={},
        layer_of_node={},
        stored_bytes=7,
        bits_per_weight=4.5,
        gates=gates,
        tool_versions={},
    )
    seal(folder, manifest)
    return open_bundle(folder)
