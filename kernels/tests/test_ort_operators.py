"""The operators of the kernels' table inside ONNX Runtime."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from edge.core.weight import Affine
from edge.kernels import ort_library_path, pack, reference
from edge.kernels.lib import ACTIVATIONS, CACHES, EPILOGUES, NORMS, oldest_onnxruntime
from edge.kernels.reference_ops import Attention, attention, fused_linear
from edge.kernels.testing import random_cache_tables

ENCODINGS = [Affine(4, 64), Affine(2, 32, "zero_point"), Affine(3, 128), Affine(8, 0)]


def model(node, inputs, types=(TensorProto.FLOAT,) * 2, constants=(), outputs=("y",)):
    initializers = [numpy_helper.from_array(value, name) for name, value in constants]
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, types, strict=False)]
    graph = helper.make_graph([node], "test", inputs, made, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edge", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def linear_model(packed, count, columns, *, bias=None, constant=True, dims=("batch", "tokens"), **attributes):
    attributes = {"rows": count, **attributes}
    names = ["x", "w"] + (["b"] if bias is not None else [])
    node = helper.make_node("Linear", names, ["y"], "layers.3.down", domain="edge", **attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*dims, columns])]
    constants = [("b", bias)] if bias is not None else []
    if constant:
        constants.append(("w", packed))
    else:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.UINT8, [None]))
    return model(node, inputs, constants=constants)


def embedding_model(packed, columns):
    node = helper.make_node("Embedding", ["ids", "w"], ["y"], domain="edge", columns=columns)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])
    return model(node, [ids], constants=[("w", packed)])


def open_session(source, threads=1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(ort_library_path()))
    return ort.InferenceSession(source if isinstance(source, str) else source.SerializeToString(), options)


def random_x(*shape) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activations", ["a8", "f32"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_linear_equals_the_reference(make_tensor, encoding, activations, threads):
    packed, bias = pack(make_tensor(500, 260, encoding)), random_x(500)
    source = linear_model(packed, 500, 260, bias=bias, activations=ACTIVATIONS[activations])
    session = open_session(source, threads)
    assert session.get_outputs()[0].shape == ["batch", "tokens", 500]
    for shape in ((1, 1, 260), (2, 17, 260), (0, 3, 260)):
        x = random_x(*shape)
        expected = reference.linear(packed, x.reshape(-1, 260), activations, bias)
        assert np.array_equal(session.run(None, {"x": x})[0], expected.reshape(*shape[:-1], 500))


FUSED = [  # skip, norm, its bias, epilogue
    (True, "rms", False, "none"),
    (True, "layer", True, "gelu_tanh"),
    (False, "rms", False, "silu_gated"),
    (False, "none", False, "gelu"),
    (True, "none", False, "gelu_gated"),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("skip", "norm", "norm_bias", "epilogue"), FUSED)
def test_the_fused_linear_equals_the_reference(make_tensor, skip, norm, norm_bias, epilogue, threads):
    packed = pack(make_tensor(200, 260, Affine(4, 64)))
    constants = {"w": packed, "b": random_x(200)}
    constants |= {"n": random_x(260) + 1} if norm != "none" else {}
    constants |= {"nb": random_x(260)} if norm_bias else {}
    names = ["x", "w", "b", "skip" if skip else "", *(name if name in constants else "" for name in ("n", "nb"))]
    attributes = {"rows": 200, "norm": NORMS[norm], "epilogue": EPILOGUES[epilogue], "epsilon": 1e-6}
    outputs = ["y", "sum"] if skip else ["y"]
    node = helper.make_node("Linear", names, outputs, "fused", domain="edge", **attributes)
    streams = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "tokens", 260]) for name in ("x", "skip")]
    source = model(node, streams[: 1 + skip], constants=constants.items(), outputs=outputs)
    session = open_session(source, threads)
    width = 100 if epilogue.endswith("gated") else 200
    assert [out.shape for out in session.get_outputs()] == [[1, "tokens", width], [1, "tokens", 260]][: 1 + skip]
    for tokens in (1, 9):
        feed = {"x": random_x(1, tokens, 260), "skip": random_x(1, tokens, 260)[:, ::-1].copy()}
        modes = {"norm": norm, "norm_weight": constants.get("n"), "norm_bias": constants.get("nb"), "epsilon": 1e-6}
        modes |= {"epilogue": epilogue, "skip": feed["skip"][0] if skip else None}
        y, *total = session.run(None, {name: feed[name] for name in ("x", "skip")[: 1 + skip]})
        assert np.array_equal(y[0], fused_linear(packed, feed["x"][0], "a8", constants["b"], **modes))
        assert not skip or np.array_equal(total[0], feed["x"] + feed["skip"])


@pytest.mark.parametrize("cache", ["f32", "f16", "int8", "table"])
@pytest.mark.parametrize("bound", [True, False])
def test_attention_extends_its_cache(cache, bound):
    """Bound to one buffer, past and present are the same memory; else the present is a copy that goes on from it."""
    bits = {"key_bits": 3, "value_bits": 4, "outliers": 2} if cache == "table" else {}
    settings = Attention(4, 2, 24, 0.2, cache, 24, 7, 20.0, **bits)
    angles = np.outer(np.arange(64), 0.5 ** np.arange(12)).astype(np.float32)
    constants = {"cos": np.cos(angles), "sin": np.sin(angles), "q_norm": random_x(24), "k_norm": random_x(24) + 2}
    constants |= random_cache_tables(settings) if bits else {}
    attributes = {"heads": 4, "kv_heads": 2, "head_dim": 24, "scale": 0.2, "window": 7, "softcap": 20.0, **bits}
    names = ["qkv", "total", "keys", "values", *constants]
    outputs = ["y", "new_keys", "new_values"]
    attributes["cache"] = CACHES[cache]
    node = helper.make_node("Attention", names, outputs, "attention", domain="edge", **attributes)
    shapes = {part: (1, *settings.cache_shape(64, part)) for part in ("keys", "values")}
    inputs = [helper.make_tensor_value_info("qkv", TensorProto.FLOAT, [1, "tokens", 8 * 24])]
    inputs.append(helper.make_tensor_value_info("total", TensorProto.INT32, []))
    inputs += [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name, shape in shapes.items()]
    types = [TensorProto.FLOAT, TensorProto.UINT8, TensorProto.UINT8]
    session = open_session(model(node, inputs, types, constants.items(), outputs), 2)
    assert [out.shape for out in session.get_outputs()] == [[1, "tokens", 96], *map(list, shapes.values())]
    past = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.uint8)) for name, shape in shapes.items()}
    keys, values = settings.empty_cache(64), settings.empty_cache(64, "values")
    position = 0
    for tokens in (20, 1, 3):
        qkv = random_x(1, tokens, 8 * 24)
        binding = session.io_binding()
        binding.bind_cpu_input("qkv", qkv)
        binding.bind_cpu_input("total", np.array(position + tokens, np.int32))
        binding.bind_output("y")
        for name, value in past.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"new_{name}", value) if bound else binding.bind_output(f"new_{name}")
        session.run_with_iobinding(binding)
        y, *present = binding.get_outputs()
        expected = attention(settings, qkv[0], keys, values, position, **constants)
        assert np.array_equal(y.numpy()[0], expected)
        past = past if bound else dict(zip(past, present, strict=True))
        assert np.array_equal(past["keys"].numpy()[0], keys)
        assert np.array_equal(past["values"].numpy()[0], values)
        position += tokens


def test_weights_in_external_data_and_without_bias(make_tensor, tmp_path):
    packed = pack(make_tensor(70, 576, Affine(4, 64)))
    path = str(tmp_path / "model.onnx")
    save(linear_model(packed, 70, 576), path, save_as_external_data=True, location="data", size_threshold=0)
    x = random_x(1, 3, 576)
    assert np.array_equal(open_session(path).run(None, {"x": x})[0][0], reference.linear(packed, x[0]))


def test_weights_as_an_input_are_checked_when_they_come(make_tensor):
    packed = pack(make_tensor(70, 64, Affine(4, 64)))
    x = random_x(1, 3, 64)
    session = open_session(linear_model(packed, 70, 64, constant=False))
    damaged = packed.copy()
    damaged[100] ^= 1
    with pytest.raises(Exception, match="their checksum differs"):
        session.run(None, {"x": x, "w": damaged})
    assert np.array_equal(session.run(None, {"x": x, "w": packed})[0][0], reference.linear(packed, x[0]))
    for wrong in (packed[:-1], packed[:10], np.zeros(1000, np.uint8)):
        with pytest.raises(Exception, match="packed weights"):
            session.run(None, {"x": x, "w": wrong})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 71}, "has the wrong size"),
        ({"rows": -1}, "has the wrong size"),
        ({"rows": 70.0}, "an integer attribute"),
        ({"activations": 2}, "has the wrong size"),
        ({"activations": "a8"}, "an integer attribute"),
        ({"epilogue": 6}, "has the wrong size"),
        ({"epsilon": 1}, "a float attribute"),
    ],
)
def test_wrong_attributes_are_errors(make_tensor, change, message):
    packed = pack(make_tensor(70, 64, Affine(4, 64)))
    with pytest.raises(Exception, match=f"node 'layers.3.down': .*{message}"):
        open_session(linear_model(packed, 70, 64, **change))


def test_wrong_inputs_are_errors(make_tensor):
    packed = pack(make_tensor(70, 64, Affine(4, 64)))
    session = open_session(linear_model(packed, 70, 64, dims=(None, None)))
    with pytest.raises(Exception, match=r"x|[Ii]nvalid"):
        session.run(None, {"x": random_x(1, 2, 63)})
    with pytest.raises(Exception, match=r"'layers.3.down'.*has the wrong size"):
        open_session(linear_model(packed, 70, 64, bias=random_x(69))).run(None, {"x": random_x(1, 2, 64)})
    damaged = packed.copy()
    damaged[-1] ^= 128
    with pytest.raises(Exception, match="their checksum differs"):
        open_session(linear_model(damaged, 70, 64))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_embedding_equals_dequantize(make_tensor, encoding):
    tensor = make_tensor(77, 100, encoding)
    session = open_session(embedding_model(pack(tensor), 100))
    assert session.get_outputs()[0].shape == ["batch", "tokens", 100]
    ids = np.array([[0, 76, 3], [15, 16, 3]])
    assert np.array_equal(session.run(None, {"ids": ids})[0], tensor.dequantize()[ids])
    for bad in (-1, 77):
        with pytest.raises(Exception, match="row that is not there"):
            session.run(None, {"ids": np.array([[bad]])})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x"], "layers.3.down"),
        (["x", ""], "layers.3.down"),
        (["x", "x"], "node .layers.3.down. is invalid"),
        (["x", "w", "w"], "node .layers.3.down. is invalid"),
    ],
)
def test_absent_inputs_and_wrong_types_name_the_node(make_tensor, names, message):
    wrong = linear_model(pack(make_tensor(70, 64, Affine(4, 64))), 70, 64)
    del wrong.graph.node[0].input[:]
    wrong.graph.node[0].input.extend(names)
    with pytest.raises(Exception, match=message):
        open_session(wrong).run(None, {"x": random_x(1, 2, 64)})


def test_many_sessions_share_the_operators(make_tensor):
    packed = pack(make_tensor(16, 32, Affine(4, 32)))
    x = random_x(1, 1, 32)
    for _ in range(20):
        assert open_session(linear_model(packed, 16, 32)).run(None, {"x": x})[0].shape == (1, 1, 16)


def test_an_older_runtime_gets_an_error():
    """A runtime that knows version 1 only: registration ends in a status that says what is needed."""
    texts = []
    create_status_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)

    @create_status_type
    def create_status(code, text):
        texts.append(text.decode())
        return 1234

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version):
        return ctypes.addressof(table) if version == 1 else None

    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), None)
    register = ctypes.CDLL(str(ort_library_path())).RegisterCustomOps
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    assert register(None, base) == 1234
    assert texts == [f"edge's operators need ONNX Runtime {oldest_onnxruntime()} or newer"]
