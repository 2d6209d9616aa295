"""Several ONNX models as one whose answer is the weighted mean of theirs: one call of ONNX Runtime answers for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymlops.data.schema import Task


def merge(models: Sequence[bytes], weights: Sequence[float], task: Task, n_features: int) -> bytes:
    """The weighted mean of the models' probabilities ``(n, k)``, or of their values ``(n, 1)``.

    Each model takes one matrix ``(n, n_features)`` and gives its probabilities as the last output, its values as the first. Their
    operator sets may differ: the newest of each is declared for all, and the package compares the outcome with the native model.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    values = task == "regression"
    nodes: list[Any] = []
    constants: list[Any] = []
    opsets: dict[str, int] = {}
    parts: list[str] = []
    ir = 1
    for i, (content, weight) in enumerate(zip(models, weights, strict=True)):
        model = compose.add_prefix(onnx.load_from_string(content), f"m{i}_")
        graph = model.graph
        ir = max(ir, model.ir_version)
        for used in model.opset_import:
            opsets[used.domain] = max(opsets.get(used.domain, 1), used.version)
        nodes.append(helper.make_node("Identity", ["x"], [graph.input[0].name]))
        nodes.extend(graph.node)
        constants.extend(graph.initializer)
        said = graph.output[0 if values else -1].name
        if values:
            constants.append(helper.make_tensor(f"column{i}", TensorProto.INT64, [2], [-1, 1]))
            nodes.append(helper.make_node("Reshape", [said, f"column{i}"], [f"values{i}"]))
            said = f"values{i}"
        constants.append(helper.make_tensor(f"weight{i}", TensorProto.FLOAT, [1], [weight]))
        nodes.append(helper.make_node("Mul", [said, f"weight{i}"], [f"part{i}"]))
        parts.append(f"part{i}")
    nodes.append(helper.make_node("Sum", parts, ["mean"]))
    graph = helper.make_graph(
        nodes,
        "ensemble",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, n_features])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [None, None])],
        constants,
    )
    ids = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    merged = helper.make_model(graph, opset_imports=ids, ir_version=ir)
    onnx.checker.check_model(merged)
    return bytes(merged.SerializeToString())
