"""The graphs that come with onnx, most of them exported from old versions of PyTorch, give the results stored beside them."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from relu_deploy.backends.reference.evaluator import Evaluator
from relu_deploy.backends.reference.program import unsupported_nodes

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS = ("pytorch-converted", "pytorch-operator", "simple")
#: graphs with operators that are not evaluated
WITHOUT = {"test_gradient_of_add", "test_gradient_of_add_and_mul"}
KINDS = {"tensor_type": (onnx.TensorProto, numpy_helper.to_array), "sequence_type": (onnx.SequenceProto, numpy_helper.to_list)}


def stored(file, value):
    proto, convert = KINDS[value.type.WhichOneof("value")]
    message = proto()
    message.ParseFromString(file.read_bytes())
    return convert(message)


def check(mine, theirs):
    if isinstance(theirs, list):
        for one, other in zip(mine, theirs, strict=True):
            check(one, other)
    elif theirs.dtype.kind in "OUS":
        assert [text.decode() if isinstance(text, bytes) else text for text in theirs.ravel()] == mine.ravel().tolist()
    else:
        np.testing.assert_allclose(mine.astype(np.float64), theirs.astype(np.float64), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_graphs_of_onnx_give_their_stored_results(folder):
    files = sorted((DATA / folder).glob("*/model.onnx"))
    assert len(files) > 15
    for file in files:
        proto = onnx.load(file)
        if file.parent.name in WITHOUT:
            assert unsupported_nodes(ir.from_proto(proto))
            continue
        evaluator = Evaluator(ir.from_proto(proto), wide=True)
        for data in sorted(file.parent.glob("test_data_set_*")):
            feeds = {value.name: stored(data / f"input_{place}.pb", value) for place, value in enumerate(proto.graph.input)
                     if (data / f"input_{place}.pb").exists()}  # fmt: skip
            for place, (value, mine) in enumerate(zip(proto.graph.output, evaluator.run(feeds).values(), strict=True)):
                check(mine, stored(data / f"output_{place}.pb", value))
