"""ONNX Runtime's MatMulNBits on the matrices of tasks_product.py: 4-bit weights, int8 activations (accuracy level 4).

Its layout: B uint8 (out, in / block, block / 2), byte k of a block holds code 2k low and code 2k + 1 high; a weight is
scale * (code - 8), as ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minedge.bench import tasks_product
from minedge.bench.worker import Clock, Subject

__all__ = ["imports", "product"]


def imports(job: Mapping[str, Any]) -> None:
    """The runtime, and the package that describes a graph."""
    import onnxruntime  # noqa: F401


class _Product(Subject):
    def __init__(self, job: Mapping[str, Any]):
        import onnxruntime as ort

        sizes = job["sizes"]
        width = sizes.get("width", tasks_product.WIDTH)
        matrices = sizes.get("matrices", tasks_product.MATRICES)
        tokens, group = sizes["tokens"], sizes["group"]
        codes, scales = tasks_product.weights(group, width)
        options = ort.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        graph = _chain(codes, scales, group, matrices)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.x = tasks_product.inputs(tokens, width)
        self.settings = f"MatMulNBits, block {group}, accuracy level 4, {ort.__version__}"
        self.facts = tasks_product.facts_of(tokens, group, width, matrices)
        first = self.session.run(["y0"], {"x": self.x})[0]
        self.outputs = {"error": tasks_product.error_of(first, codes, scales, self.x)}
        self.last = f"y{matrices - 1}"

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self.session.run([self.last], {"x": self.x})


def _chain(codes: Any, scales: Any, group: int, matrices: int) -> bytes:
    """A serialized graph: y0 = B0 x, y1 = B1 y0, ..."""
    from onnx import TensorProto, helper

    width = codes.shape[1]
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).reshape(width, width // group, group // 2)
    nodes, constants, outputs, x = [], [], [], "x"
    for i in range(matrices):
        turned = tasks_product.matrix(packed, i)
        b = helper.make_tensor(f"b{i}", TensorProto.UINT8, packed.shape, turned.tobytes(), raw=True)
        s = tasks_product.matrix(scales, i).astype(np.float32)
        constants += [b, helper.make_tensor(f"s{i}", TensorProto.FLOAT, [s.size], s.tobytes(), raw=True)]
        attributes = dict(K=width, N=width, bits=4, block_size=group, accuracy_level=4)
        nodes.append(
            helper.make_node("MatMulNBits", [x, f"b{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **attributes)
        )
        x = f"y{i}"
        outputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["tokens", width]))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", width])
    graph = helper.make_graph(nodes, "chain", [value], [outputs[0], outputs[-1]], constants)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString())


def product(job: Mapping[str, Any]) -> Subject:
    """One session run for the whole chain, so that no Python stands between two products."""
    return _Product(job)
