"""Trained networks as ONNX files, translated from their own forward pass.

The graph takes `images` `[n, 48, 48]` uint8, grey, any number of them, and returns `probabilities`
and `logits`, both `[n, classes]` float32. Scaling and resizing happen inside. Convolutions see
`[n, channels, height, width]`, as ONNX wants it; BatchNorm is folded into them.
"""

import collections
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax.extend
import numpy as np
from flax import linen as nn

from fer_jax.apps import trace
from fer_jax.errors import ExtraError, WeightsError
from fer_jax.models.layers import LocalResponseNorm

OPSET = 17
_IR_VERSION = 8  # of the file format, the oldest that has the opset
_FLOAT = 1  # onnx.TensorProto.FLOAT


KERNELS = ("float32", "float16", "int8")  # how a file may store them


def export(
    model: nn.Module, variables: Any, metadata: dict[str, Any], kernels: str = "float32"
) -> bytes:
    """Writes a trained network as ONNX.

    Args:
      model: from `create_model`; whatever its `dtype`, the file computes in float32.
      variables: as `model.apply` takes them.
      metadata: what travels inside the file, as `fer_jax.weights.store.load` returns it. Each entry
        becomes a metadata property, JSON if it is not a string, as `trace.describe` changes them.
      kernels: one of `KERNELS`, how they are stored: float16 halves the file's size, int8 with a
        float32 scale for each output channel quarters it. It computes in float32 all the same.

    Returns:
      The file's content.

    Raises:
      WeightsError: if weights are not finite, or the network has an operation that has no
        translation here.
      ExtraError: if the package `onnx` is not installed.
    """
    _require()
    graph = _Graph()
    with nn.intercept_methods(_keep_whole):
        traced = trace.forward(model, variables, trace.images_spec())
    logits = _translate(graph, traced)
    logits = _fold(graph, logits)
    if kernels != "float32":
        _store_kernels(graph, _as_int8 if kernels == "int8" else _as_float16)
    described = trace.describe(metadata, kernels)
    return _serialize(graph, logits, traced.out_avals[0].shape[1], described)


def _require() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ExtraError(f"ONNX takes a package ({error}): pip install 'fer-jax[export]'") from None


# An operation of its own, so that it becomes one node instead of seven and a matrix.
_local_response_norm = jax.extend.core.Primitive("local_response_norm")
_local_response_norm.def_abstract_eval(lambda x, **_: x)


def _keep_whole(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
    layer = context.module
    if isinstance(layer, LocalResponseNorm) and context.method_name == "__call__":
        fields = {name: getattr(layer, name) for name in ("size", "bias", "alpha", "beta")}
        return _local_response_norm.bind(*args, **fields)
    return call(*args, **kwargs)


@dataclasses.dataclass
class _Node:
    """A node of an ONNX graph with one output."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A result of a node.

    Attributes:
      name: in the graph.
      shape: as JAX has it; sides that are broadcast later are 1.
      axes: which of JAX's axes each axis of the graph's tensor is.
    """

    name: str
    shape: tuple[Any, ...]
    axes: tuple[int, ...]


type _Value = _Tensor | np.ndarray


class _Graph:
    """Nodes and constants under construction."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}  # of constants, so that equal ones are kept once
        self._stored: dict[tuple, str] = {}

    def constant(self, array: np.ndarray) -> str:
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = name = f"c{len(self._names)}"  # some of them are folded away
            self.constants[name] = array
        return self._names[key]

    def add(self, op: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Adds a node and returns its output."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(_Node(op, names, output, attributes))
        return output

    def stored(self, value: _Value, axes: Sequence[int]) -> str:
        """Returns the name of a value whose axes lie in the order asked for."""
        axes = tuple(axes)
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(axes))
        if value.axes == axes:
            return value.name
        key = (value.name, axes)
        if key not in self._stored:
            permutation = [value.axes.index(axis) for axis in axes]
            self._stored[key] = self.add("Transpose", value.name, perm=permutation)
        return self._stored[key]


def _translate(graph: _Graph, traced: Any) -> str:
    """Adds the nodes that compute a traced function's only output; returns its name."""
    jaxpr = traced.jaxpr
    values: dict[Any, _Value] = {
        var: np.asarray(constant)
        for var, constant in zip(jaxpr.constvars, traced.consts, strict=True)
    }
    images: Any
    (images,), (output,) = jaxpr.invars, jaxpr.outvars
    values[images] = _Tensor(trace.INPUT, images.aval.shape, (0, 1, 2))

    def read(atom: Any) -> _Value:
        is_literal = hasattr(atom, "val")
        return np.asarray(atom.val, atom.aval.dtype) if is_literal else values[atom]

    for equation in _needed(jaxpr):
        name = equation.primitive.name
        if name not in _RULES:
            raise WeightsError(
                f"a network with the operation `{name}` cannot be written as ONNX; its translation "
                "belongs into fer_jax/apps/onnx.py"
            )
        inputs = [read(atom) for atom in equation.invars]
        if name not in _BROADCAST:
            shapes = [atom.aval.shape for atom in equation.invars]
            inputs = [_expand(graph, *pair) for pair in zip(inputs, shapes, strict=True)]
        outputs = _RULES[name](graph, equation, *inputs)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    logits = values[output]
    assert isinstance(logits, _Tensor)
    return graph.stored(logits, range(2))


def _needed(jaxpr: Any) -> list[Any]:
    """Returns the equations that the output depends on."""
    needed, equations = set(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            equations.append(equation)
            needed.update(a for a in equation.invars if not hasattr(a, "val"))
    return equations[::-1]


def _unary(op: str) -> Callable:
    def rule(graph: _Graph, equation: Any, x: _Tensor) -> _Tensor:
        return dataclasses.replace(x, name=graph.add(op, x.name))

    return rule


def _binary(op: str) -> Callable:
    def rule(graph: _Graph, equation: Any, x: Any, y: Any) -> _Tensor:
        if isinstance(x, np.ndarray) and op in ("Add", "Mul", "Max", "Min"):
            x, y = y, x  # constants come second
        if op == "Max" and isinstance(x, _Tensor) and isinstance(y, np.ndarray) and not y.any():
            return dataclasses.replace(x, name=graph.add("Relu", x.name))
        tensors = [v for v in (x, y) if isinstance(v, _Tensor)]
        if not tensors:
            raise WeightsError("a constant for each image of a batch cannot be written as ONNX")
        axes = tensors[0].axes
        names = [
            graph.constant(_shrink(v).transpose(axes) if v.ndim else v)
            if isinstance(v, np.ndarray)
            else graph.stored(v, axes)
            for v in (x, y)
        ]
        shape = tensors[0].shape
        for other in tensors[1:]:
            shape = tuple(b if a == 1 else a for a, b in zip(shape, other.shape, strict=True))
        return _Tensor(graph.add(op, *names), shape, axes)

    return rule


def _shrink(array: np.ndarray) -> np.ndarray:
    """Returns an array with sides of 1 where all elements along an axis are the same."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if array.shape[axis] > 1 and (array == first).all():
            array = first
    return array


def _convert(graph, equation, x):
    if equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype:
        return x
    from onnx import helper

    to = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return dataclasses.replace(x, name=graph.add("Cast", x.name, to=to))


def _reshape(graph, equation, x):
    return _to_shape(graph, x, equation.outvars[0].aval.shape)


def _to_shape(graph: _Graph, x: _Tensor, shape: tuple[Any, ...]) -> _Tensor:
    """Reshapes in JAX's order of elements; where only sides of 1 come or go, nothing is moved."""
    rank = len(shape)
    layouts = [tuple(range(rank))]
    if rank == 4:
        layouts.insert(0, (0, 3, 1, 2))
    name = x.name
    kept = [axis for axis, side in enumerate(shape) if side != 1]
    if [side for side in x.shape if side != 1] == [shape[axis] for axis in kept]:
        order = _order(x.shape, x.axes)
        ones = [axis for axis in range(rank) if axis not in kept]
        layouts.append((*(kept[i] for i in order), *ones))
        axes = next(axes for axes in layouts if _order(shape, axes) == order)
    else:
        name, axes = graph.stored(x, range(len(x.shape))), layouts[-1]
    sizes = [shape[axis] if isinstance(shape[axis], int) else -1 for axis in axes]
    return _Tensor(graph.add("Reshape", name, np.array(sizes, np.int64)), shape, axes)


def _order(shape: Sequence[Any], axes: Sequence[int]) -> list[int]:
    """Returns in which order the sides other than 1 lie."""
    kept = [axis for axis, side in enumerate(shape) if side != 1]
    return [kept.index(axis) for axis in axes if axis in kept]


def _broadcast(graph, equation, x):
    """Adds axes of side 1; the nodes after it broadcast."""
    shape = [1] * len(equation.outvars[0].aval.shape)
    for axis, side in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = side
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    return _to_shape(graph, x, tuple(shape))


def _expand(graph: _Graph, x: _Value, shape: tuple[Any, ...]) -> _Value:
    """Returns what was broadcast in its full shape."""
    if x.shape == shape:
        return x
    if isinstance(x, np.ndarray):
        raise WeightsError("a constant for each image of a batch cannot be written as ONNX")
    sizes = [shape[axis] if isinstance(shape[axis], int) else 1 for axis in x.axes]
    return _Tensor(graph.add("Expand", x.name, np.array(sizes, np.int64)), shape, x.axes)


def _transpose(graph, equation, x):
    order = equation.params["permutation"]
    axes = tuple(order.index(axis) for axis in x.axes)
    return _Tensor(x.name, tuple(x.shape[axis] for axis in order), axes)


def _slice(graph, equation, x):
    params, shape = equation.params, equation.outvars[0].aval.shape
    strides = params["strides"] or (1,) * len(shape)
    cut = [axis for axis in range(len(shape)) if x.shape[axis] != shape[axis]]
    if not cut:
        return x
    columns = [
        [params["start_indices"][axis] for axis in cut],
        [params["limit_indices"][axis] for axis in cut],
        [x.axes.index(axis) for axis in cut],
        [strides[axis] for axis in cut],
    ]
    name = graph.add("Slice", x.name, *(np.array(column, np.int64) for column in columns))
    return _Tensor(name, shape, x.axes)


def _split(graph, equation, x):
    axis, start, parts = equation.params["axis"], 0, []
    for size, out in zip(equation.params["sizes"], equation.outvars, strict=True):
        places = [[start], [start + size], [x.axes.index(axis)]]
        name = graph.add("Slice", x.name, *(np.array(place, np.int64) for place in places))
        parts.append(_Tensor(name, out.aval.shape, x.axes))
        start += size
    return parts


def _concatenate(graph, equation, *parts):
    axes = parts[0].axes
    axis = axes.index(equation.params["dimension"])
    name = graph.add("Concat", *(graph.stored(part, axes) for part in parts), axis=axis)
    return _Tensor(name, equation.outvars[0].aval.shape, axes)


def _pad(graph, equation, x, value):
    config = [equation.params["padding_config"][axis] for axis in x.axes]
    if any(interior for _, _, interior in config):
        raise WeightsError("padding between elements cannot be written as ONNX")
    pads = np.array([[low for low, _, _ in config], [high for _, high, _ in config]], np.int64)
    name = graph.add("Pad", x.name, pads.ravel(), value)
    return _Tensor(name, equation.outvars[0].aval.shape, x.axes)


def _reduce_sum(graph, equation, x):
    reduced = equation.params["axes"]
    places = [x.axes.index(axis) for axis in reduced]
    name = graph.add("ReduceMean", x.name, axes=sorted(places), keepdims=0)
    name = graph.add("Mul", name, np.float32(np.prod([x.shape[axis] for axis in reduced])))
    kept = [axis for axis in range(len(x.shape)) if axis not in reduced]
    axes = tuple(kept.index(axis) for axis in x.axes if axis in kept)
    return _Tensor(name, equation.outvars[0].aval.shape, axes)


def _window(op: str) -> Callable:
    def rule(graph, equation, x):
        params = equation.params
        window, padding = params["window_dimensions"], params["padding"]
        sides = [axis for axis, size in enumerate(window) if size > 1]
        axes = [axis for axis in range(4) if axis not in sides] + sides
        pads = [padding[axis][0] for axis in sides] + [padding[axis][1] for axis in sides]
        name = graph.add(
            op,
            graph.stored(x, axes),
            kernel_shape=[window[axis] for axis in sides],
            strides=[params["window_strides"][axis] for axis in sides],
            pads=pads,
            **({"count_include_pad": 1} if op == "AveragePool" else {}),
        )
        if op == "AveragePool":
            name = graph.add("Mul", name, np.float32(np.prod(window)))
        return _Tensor(name, equation.outvars[0].aval.shape, tuple(axes))

    return rule


def _conv(graph, equation, x, kernel):
    params = equation.params
    numbers, padding = params["dimension_numbers"], params["padding"]
    name = graph.add(
        "Conv",
        graph.stored(x, numbers.lhs_spec),
        graph.stored(kernel, numbers.rhs_spec),
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[low for low, _ in padding] + [high for _, high in padding],
        group=params["feature_group_count"],
    )
    return _Tensor(name, equation.outvars[0].aval.shape, tuple(numbers.out_spec))


def _dot(graph, equation, x, y):
    """A product with a constant matrix: contracted axis last, the others as they lie."""
    ((x_axes, y_axes), batch) = equation.params["dimension_numbers"]
    tensor_first = isinstance(x, _Tensor)
    tensor, matrix = (x, y) if tensor_first else (y, x)
    (axis,), (row,) = (x_axes, y_axes) if tensor_first else (y_axes, x_axes)
    if batch != ((), ()) or not isinstance(matrix, np.ndarray) or matrix.ndim != 2:
        raise WeightsError("a product of two tensors cannot be written as ONNX")
    others = [a for a in tensor.axes if a != axis]
    name = graph.stored(tensor, [*others, axis])
    op = "Gemm" if len(others) == 1 else "MatMul"
    name = graph.add(op, name, matrix if row == 0 else matrix.T)
    rank = len(others) + 1
    kept = sorted(others)  # JAX's axes of the result: the first operand's, then the second's
    if tensor_first:
        axes = (*(kept.index(a) for a in others), rank - 1)
    else:
        axes = (*(kept.index(a) + 1 for a in others), 0)
    return _Tensor(name, equation.outvars[0].aval.shape, axes)


def _lrn(graph, equation, x):
    p = equation.params
    name = graph.add(
        "LRN",
        graph.stored(x, (0, 3, 1, 2)),
        size=p["size"],
        bias=float(p["bias"]),
        alpha=float(p["alpha"] * p["size"]),  # ONNX divides by the size
        beta=float(p["beta"]),
    )
    return _Tensor(name, x.shape, (0, 3, 1, 2))


def _square(graph, equation, x):
    return dataclasses.replace(x, name=graph.add("Mul", x.name, x.name))


# What broadcasts by itself, so that what it is given need not be.
_BROADCAST: dict[str, Callable] = {
    "abs": _unary("Abs"),
    "erf": _unary("Erf"),
    "exp": _unary("Exp"),
    "log": _unary("Log"),
    "logistic": _unary("Sigmoid"),
    "neg": _unary("Neg"),
    "sqrt": _unary("Sqrt"),
    "tanh": _unary("Tanh"),
    "square": _square,
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "max": _binary("Max"),
    "min": _binary("Min"),
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _convert,
}
_RULES = _BROADCAST | {
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _window("MaxPool"),
    "reduce_window_sum": _window("AveragePool"),
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "local_response_norm": _lrn,
}


def _fold(graph: _Graph, output: str) -> str:
    """Folds arithmetic with constants into the node before it; returns the output's new name."""
    uses = collections.Counter(name for node in graph.nodes for name in node.inputs)
    uses[output] += 1
    made: dict[str, _Node] = {}  # output -> node
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        before = made.get(node.inputs[0])
        if before and uses[before.output] == 1 and _merge(graph, before, node):
            del made[before.output]
            before.output = node.output
            node = before
        if node.op == "Mul" and (graph.constants.get(node.inputs[1], np.zeros(1)) == 1).all():
            renamed[node.output] = node.inputs[0]
        else:
            made[node.output] = node
    graph.nodes = list(made.values())
    used = {name for node in graph.nodes for name in node.inputs}
    graph.constants = {k: v for k, v in graph.constants.items() if k in used}
    return renamed.get(output, output)


def _merge(graph: _Graph, before: _Node, node: _Node) -> bool:
    """Lets a node do what the one after it does, if it can; returns whether it does."""
    if before.op == node.op == "Reshape":
        before.inputs[1] = node.inputs[1]
        return True
    if node.op not in ("Add", "Sub", "Mul", "Div") or node.inputs[1] not in graph.constants:
        return False
    operand = graph.constants[node.inputs[1]].astype(np.float64)
    if before.op == "Mul" and before.inputs[1] in graph.constants and node.op in ("Mul", "Div"):
        factor = graph.constants[before.inputs[1]].astype(np.float64)
        product = factor * operand if node.op == "Mul" else factor / operand
        before.inputs[1] = graph.constant(product.astype(np.float32))
        return True
    if before.op not in ("Conv", "Gemm") or before.inputs[1] not in graph.constants:
        return False
    kernel = graph.constants[before.inputs[1]].astype(np.float64)
    channel = 0 if before.op == "Conv" else 1
    channels = kernel.shape[channel]
    shape = (1, channels, *[1] * (kernel.ndim - 2))
    if operand.size != 1 and operand.shape != shape:
        return False
    operand = np.broadcast_to(operand.ravel(), channels)
    bias = graph.constants[before.inputs[2]] if len(before.inputs) == 3 else np.zeros(channels)
    bias = bias.astype(np.float64)
    if node.op in ("Mul", "Div"):
        factor = operand if node.op == "Mul" else 1 / operand
        sides = [1] * kernel.ndim
        sides[channel] = channels
        kernel, bias = kernel * factor.reshape(sides), bias * factor
        before.inputs[1] = graph.constant(kernel.astype(np.float32))
    else:
        bias = bias + operand if node.op == "Add" else bias - operand
    before.inputs[2:] = [graph.constant(bias.astype(np.float32))]
    return True


_CHANNEL_AXIS = {"Conv": 0, "Gemm": 1, "MatMul": 1}  # of a kernel's outputs


def _store_kernels(
    graph: _Graph, store: Callable[[_Graph, str, int], tuple[str, list[str], dict[str, Any]]]
) -> None:
    """Replaces kernels by smaller constants and a node that makes float32 of them.

    Images and what is between layers stay float32.

    Args:
      graph: it changes.
      store: graph, kernel's name, axis of its outputs -> operation, inputs and attributes.
    """
    nodes, done = [], set()
    for node in graph.nodes:
        axis = _CHANNEL_AXIS.get(node.op)
        kernel = None if axis is None else graph.constants.get(node.inputs[1])
        if kernel is not None and axis is not None and kernel.dtype == np.float32:
            name = f"{node.inputs[1]}_axis{axis}"
            if name not in done:  # layers may share a kernel
                op, inputs, attributes = store(graph, node.inputs[1], axis)
                nodes.append(_Node(op, inputs, name, attributes))
                done.add(name)
            node = dataclasses.replace(node, inputs=[node.inputs[0], name, *node.inputs[2:]])
        nodes.append(node)
    graph.nodes = nodes
    used = {name for node in nodes for name in node.inputs}
    graph.constants = {name: x for name, x in graph.constants.items() if name in used}


def _as_float16(graph: _Graph, name: str, axis: int) -> tuple[str, list[str], dict[str, Any]]:
    with np.errstate(over="ignore"):
        half = graph.constants[name].astype(np.float16)
    if not np.isfinite(half).all():
        raise WeightsError("a kernel has weights beyond float16's range; store it as float32")
    return "Cast", [graph.constant(half)], {"to": _FLOAT}


def _as_int8(graph: _Graph, name: str, axis: int) -> tuple[str, list[str], dict[str, Any]]:
    """Stores q = round(w / s), with the scale s = max |w| / 127 of each output.

    Source: Krishnamoorthi 2018, Quantizing deep convolutional networks for efficient inference,
    section 2.2 (symmetric, per channel).
    """
    kernel = graph.constants[name]
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    largest = np.abs(kernel).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
    inputs = [np.round(kernel / scale).astype(np.int8), scale.reshape(-1)]
    return "DequantizeLinear", [graph.constant(array) for array in inputs], {"axis": axis}


def _serialize(graph: _Graph, logits: str, classes: int, described: dict[str, Any]) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = {logits: trace.OUTPUTS[1]}
    nodes = [
        helper.make_node(
            node.op,
            [names.get(name, name) for name in node.inputs],
            [names.get(node.output, node.output)],
            **node.attributes,
        )
        for node in graph.nodes
    ]
    nodes.append(helper.make_node("Softmax", [trace.OUTPUTS[1]], [trace.OUTPUTS[0]], axis=-1))
    spec = trace.images_spec()
    images = helper.make_tensor_value_info(trace.INPUT, TensorProto.UINT8, ["n", *spec.shape[1:]])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", classes])
        for name in trace.OUTPUTS
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "fer_jax", [images], outputs, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="fer-jax",
        producer_version=importlib.metadata.version("fer-jax"),
    )
    properties = {k: v if isinstance(v, str) else json.dumps(v) for k, v in described.items()}
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)
