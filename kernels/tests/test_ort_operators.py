"""edge::LinearAffine and edge::EmbeddingAffine inside ONNX Runtime."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from edge.core.weight import Affine
from edge.kernels import ort_library_path, pack, reference

ENCODINGS = [Affine(4, 64), Affine(2, 32, "zero_point"), Affine(3, 128), Affine(8, 0)]


def model(node, inputs, output_type=TensorProto.FLOAT, constants=()):
    initializers = [numpy_helper.from_array(value, name) for name, value in constants]
    output = helper.make_tensor_value_info("y", output_type, None)
    graph = helper.make_graph([node], "test", inputs, [output], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edge", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def linear_model(packed, rows, columns, *, bias=None, constant=True, dims=("batch", "tokens"), **attributes):
    attributes = {"N": rows, "K": columns, "activations": "a8", **attributes}
    names = ["x", "w"] + (["b"] if bias is not None else [])
    node = helper.make_node("LinearAffine", names, ["y"], "layers.3.down", domain="edge", **attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*dims, columns])]
    constants = [("b", bias)] if bias is not None else []
    if constant:
        constants.append(("w", packed))
    else:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.UINT8, [None]))
    return model(node, inputs, constants=constants)


def embedding_model(packed, hidden):
    node = helper.make_node("EmbeddingAffine", ["ids", "w"], ["y"], domain="edge", hidden=hidden)
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
    session = open_session(linear_model(packed, 500, 260, bias=bias, activations=activations), threads)
    assert session.get_outputs()[0].shape == ["batch", "tokens", 500]
    for shape in ((1, 1, 260), (2, 17, 260), (0, 3, 260)):
        x = random_x(*shape)
        expected = reference.linear(packed, x.reshape(-1, 260), activations, bias)
        assert np.array_equal(session.run(None, {"x": x})[0], expected.reshape(*shape[:-1], 500))


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
        ({"N": 71}, "attribute N differs"),
        ({"K": 65}, "attribute K"),
        ({"N": -1}, "attribute N differs"),
        ({"activations": "a9"}, 'must be "a8" or "f32"'),
        ({"activations": "a8 and more than that"}, 'must be "a8" or "f32"'),
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
    with pytest.raises(Exception, match=r"bias must be float \[N\]"):
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
    assert texts == ["edge's operators need ONNX Runtime 1.17 or newer"]
