"""The operators of the kernels' table inside ONNX Runtime."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from edge.core.weight import Affine
from edge.kernels import ort_library_path, pack, reference
from edge.kernels.lib import ACTIVATIONS

ENCODINGS = [Affine(4, 64), Affine(2, 32, "zero_point"), Affine(3, 128), Affine(8, 0)]


def model(node, inputs, output_type=TensorProto.FLOAT, constants=()):
    initializers = [numpy_helper.from_array(value, name) for name, value in constants]
    output = helper.make_tensor_value_info("y", output_type, None)
    graph = helper.make_graph([node], "test", inputs, [output], initializers)
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
    assert texts == ["edge's operators need ONNX Runtime 1.17 or newer"]
