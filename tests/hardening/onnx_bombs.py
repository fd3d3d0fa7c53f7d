"""ONNX files of a few kilobytes that ask their reader for more time or memory than there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
from onnx import TensorProto as T
from onnx import helper as h
from seed_models import constant, loop, model_of, value

__all__ = ["BOMBS"]


def nested_functions(draw: random.Random) -> bytes:
    """Functions that each call the one below them several times ("billion laughs")."""
    levels, calls = draw.choice((16, 40, 200)), draw.choice((2, 10))
    opsets = [h.make_opsetid("", 20), h.make_opsetid("local", 1)]
    functions = [h.make_function("local", "F0", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"])], opsets)]
    for level in range(1, levels):
        names = ["a", *(f"t{at}" for at in range(calls - 1)), "b"]
        nodes = [h.make_node(f"F{level - 1}", [names[at]], [names[at + 1]], domain="local") for at in range(calls)]
        functions.append(h.make_function("local", f"F{level}", ["a"], ["b"], nodes, opsets))
    top = h.make_node(f"F{levels - 1}", ["x"], ["y"], domain="local")
    return model_of([top], [value("x")], [value("y")], functions=functions).SerializeToString()


def recursive_functions(_: random.Random) -> bytes:
    opsets = [h.make_opsetid("", 20), h.make_opsetid("local", 1)]
    made = [
        h.make_function("local", f"F{at}", ["a"], ["b"], [h.make_node(f"F{1 - at}", ["a"], ["b"], domain="local")], opsets)
        for at in range(2)
    ]
    return model_of(
        [h.make_node("F0", ["x"], ["y"], domain="local")], [value("x")], [value("y")], functions=made
    ).SerializeToString()


def long_chain(draw: random.Random) -> bytes:
    length = draw.choice((5_000, 20_000, 100_000))
    kind = draw.choice(("Relu", "Identity", "Neg"))
    names = ["x", *(f"t{at}" for at in range(length - 1)), "y"]
    return model_of(
        [h.make_node(kind, [names[at]], [names[at + 1]]) for at in range(length)], [value("x")], [value("y")]
    ).SerializeToString()


def doubled_chain(draw: random.Random) -> bytes:
    """Nodes that each read the last result twice: 2 to the power of the length paths."""
    length = draw.choice((64, 2000))
    names = ["x", *(f"t{at}" for at in range(length - 1)), "y"]
    nodes = [h.make_node("Add", [names[at], names[at]], [names[at + 1]]) for at in range(length)]
    return model_of(nodes, [value("x")], [value("y")]).SerializeToString()


def many_inputs(draw: random.Random) -> bytes:
    inputs = [value(f"x{at}", (1,)) for at in range(draw.choice((2_000, 20_000)))]
    return model_of([h.make_node("Relu", ["x0"], ["y"])], inputs, [value("y", (1,))]).SerializeToString()


def many_outputs(draw: random.Random) -> bytes:
    count = draw.choice((500, 5_000))
    nodes = [h.make_node("Relu", ["x"], [f"y{at}"]) for at in range(count)]
    return model_of(nodes, [value("x")], [value(f"y{at}") for at in range(count)]).SerializeToString()


def deep_branches(draw: random.Random) -> bytes:
    """If nodes in each other's branches, deeper than protobuf's own classes can build a message."""
    inner = _graph([_field(1, b"x") + _field(2, b"t") + _field(4, b"Relu")], "t")
    for _ in range(draw.choice((20, 31, 33, 90, 1000))):
        inner = _graph([_if("t", inner)], "t")
    start = model_of([], [value("x")], [value("y")], [constant("go", np.bool_(True))]).SerializeToString()
    # Fields of a message that is given twice are merged: this adds a node to the graph, field 7 of the model.
    return start + _field(7, _field(1, _if("y", inner)))


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field of a message."""
    length, rest = b"", len(content)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + content


def _if(output: str, branch: bytes) -> bytes:
    graph_kind = b"\xa0\x01\x05"  # field 20, the attribute's type: a graph
    branches = [_field(5, _field(1, name) + _field(6, branch) + graph_kind) for name in (b"then_branch", b"else_branch")]
    if len(branch) > 10_000:  # twice as long with each level otherwise
        branches[1] = _field(5, _field(1, b"else_branch") + _field(6, _graph([], "x")) + graph_kind)
    return _field(1, b"go") + _field(2, output.encode()) + _field(4, b"If") + b"".join(branches)


def _graph(nodes: list[bytes], output: str) -> bytes:
    return b"".join(_field(1, node) for node in nodes) + _field(2, b"g") + _field(12, _field(1, output.encode()))


def filled_shape(draw: random.Random) -> bytes:
    """ConstantOfShape, Expand, Tile, Range, Pad, OneHot or Resize with a constant that makes gigabytes."""
    size = draw.choice((2**31, 2**33, 2**45, 2**61))
    many = constant("n", np.array([size], np.int64))
    nodes, constants = {
        "ConstantOfShape": ([h.make_node("ConstantOfShape", ["n"], ["big"])], [many]),
        "Expand": ([h.make_node("Expand", ["one", "n"], ["big"])], [many, constant("one", np.ones(1, np.float32))]),
        "Tile": ([h.make_node("Tile", ["one", "n"], ["big"])], [many, constant("one", np.ones(1, np.float32))]),
        "Range": (
            [h.make_node("Range", ["zero", "n0", "one"], ["big"])],
            [constant("zero", np.float32(0)), constant("n0", np.float32(size)), constant("one", np.float32(1))],
        ),
        "Pad": (
            [h.make_node("Pad", ["one", "pads"], ["big"])],
            [constant("pads", np.array([0, size], np.int64)), constant("one", np.ones(1, np.float32))],
        ),
        "OneHot": (
            [h.make_node("OneHot", ["zero", "n", "values"], ["big"])],
            [many, constant("zero", np.zeros(1, np.int64)), constant("values", np.array([0, 1], np.float32))],
        ),
        "Resize": (
            [h.make_node("Resize", ["grid", "", "scales"], ["big"], mode="nearest")],
            [constant("grid", np.ones((1, 1, 4, 4), np.float32)), constant("scales", np.array([1, 1, 1e5, 1e5], np.float32))],
        ),
    }[draw.choice(("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "OneHot", "Resize"))]  # fmt: skip
    nodes = [*nodes, h.make_node("ReduceSum", ["big"], ["sum"], keepdims=0), h.make_node("Add", ["x", "sum"], ["a"])]
    nodes.append(h.make_node("Relu", ["a"], ["y"]))
    return model_of(nodes, [value("x")], [value("y")], constants).SerializeToString()


def repeated_tiles(draw: random.Random) -> bytes:
    """A tensor that a chain of Concat nodes doubles each time, each step small by itself."""
    length = draw.choice((24, 40, 60))
    nodes = [h.make_node("Relu", ["x"], ["t0"])]
    nodes += [h.make_node("Concat", [f"t{at}", f"t{at}"], [f"t{at + 1}"], axis=0) for at in range(length)]
    nodes.append(h.make_node("ReduceMax", [f"t{length}"], ["y"], keepdims=0))
    return model_of(nodes, [value("x", (1, 4))], [value("y", ())]).SerializeToString()


def outer_product(draw: random.Random) -> bytes:
    """A small input against its transpose, again and again."""
    rows = draw.choice((20_000, 100_000, 2**31))
    nodes = [h.make_node("Expand", ["x", "n"], ["e"]), h.make_node("Transpose", ["e"], ["t"], perm=[1, 0])]
    nodes += [h.make_node("MatMul", ["e", "t"], ["m"]), h.make_node("ReduceMax", ["m"], ["y"], keepdims=0)]
    return model_of(
        nodes, [value("x", (1, 1))], [value("y", ())], [constant("n", np.array([rows, 1], np.int64))]
    ).SerializeToString()


def large_input(draw: random.Random) -> bytes:
    shape = draw.choice(((1, 10**6, 10**6), (1, 2**30), (2**20, 2**20, 2**20), (1, 600, 10**6)))
    return model_of([h.make_node("Relu", ["x"], ["y"])], [value("x", shape)], [value("y", shape)]).SerializeToString()


def endless_loop(draw: random.Random) -> bytes:
    return loop(draw.choice((10**9, 2**62))).SerializeToString()


def growing_loop(draw: random.Random) -> bytes:
    """A loop whose state doubles with each turn: its size is known only when it runs."""
    body = h.make_graph(
        [h.make_node("Concat", ["a", "a"], ["next"], axis=0), h.make_node("Identity", ["go"], ["still"])],
        "body",
        [value("i", (), T.INT64), value("go", (), T.BOOL), value("a", None)],
        [value("still", (), T.BOOL), value("next", None)],
    )
    nodes = [h.make_node("Relu", ["x"], ["r"]), h.make_node("Loop", ["n", "yes", "r"], ["big"], body=body)]
    nodes.append(h.make_node("ReduceMax", ["big"], ["y"], keepdims=0))
    constants = [constant("n", np.int64(draw.choice((30, 60)))), constant("yes", np.bool_(True))]
    return model_of(nodes, [value("x", (1, 4))], [value("y", ())], constants).SerializeToString()


def long_names(draw: random.Random) -> bytes:
    name = draw.choice(("n", "\x1b[31m", "ä")) * draw.choice((10_000, 300_000))
    return model_of(
        [h.make_node("Relu", ["x"], [name], name), h.make_node("Relu", [name], ["y"], name)], [value("x")], [value("y")]
    ).SerializeToString()


def doubled_ranks(draw: random.Random) -> bytes:
    """A tensor that gains dimensions with each node: twice as many by Gather, one by Unsqueeze, all at once by Expand."""
    kind, length = draw.choice(("Gather", "GatherND", "Unsqueeze", "Expand")), draw.choice((30, 60, 2000))
    inputs, constants = [value("x", (2, 2))], [constant("axis", np.array([0], np.int64))]
    nodes = [h.make_node("Cast", ["x"], ["t0"], to=T.INT64)]
    if kind == "Expand":
        inputs.append(value("shape", (draw.choice((65, 10**6, 10**8)),), T.INT64))
        nodes.append(h.make_node("Expand", ["t0", "shape"], ["t1"]))
        length = 1
    else:
        second = "axis" if kind == "Unsqueeze" else ""
        nodes += [h.make_node(kind, [f"t{at}", second or f"t{at}"], [f"t{at + 1}"]) for at in range(length)]
    nodes.append(h.make_node("Cast", [f"t{length}"], ["y"], to=T.FLOAT))
    return model_of(nodes, inputs, [value("y", None)], constants).SerializeToString()


def repeated_constants(draw: random.Random) -> bytes:
    """A function whose constant, names or attributes are repeated at each of its many calls."""
    opsets = [h.make_opsetid("", 20), h.make_opsetid("local", 1)]
    size = draw.choice((2**10, 2**18))
    steps = [h.make_node("Constant", [], ["c"], value=constant("", np.zeros(size, np.float32)))]
    steps += [
        h.make_node("ReduceSum", ["c"], ["s"], "n" * draw.choice((1, 10**5)), keepdims=0),
        h.make_node("Add", ["a", "s"], ["b"]),
    ]
    function = h.make_function("local", "F", ["a"], ["b"], steps, opsets)
    count = draw.choice((100, 1000))
    names = ["x", *(f"t{at}" for at in range(count - 1)), "y"]
    calls = [h.make_node("F", [names[at]], [names[at + 1]], domain="local") for at in range(count)]
    return model_of(calls, [value("x")], [value("y")], functions=[function]).SerializeToString()


def malformed_equation(draw: random.Random) -> bytes:
    """An Einsum whose equation onnx's shape inference reads without end."""
    equation = draw.choice(("......->...", "a(b->", "ab-->a", "ab\0->a", "...->" + "." * 9, "," * 1000))
    return model_of(
        [h.make_node("Einsum", ["x"], ["y"], equation=equation)], [value("x")], [value("y", None)]
    ).SerializeToString()


def long_repetition(draw: random.Random) -> bytes:
    """A Loop or Scan whose number of turns is known, or depends on what is fed, and takes minutes."""
    turns = draw.choice((10**5, 10**6, 10**7, 10**8))
    if draw.random() < 0.5:
        return loop(turns).SerializeToString()
    body = h.make_graph(
        [h.make_node("Add", ["s", "e"], ["t"]), h.make_node("Relu", ["t"], ["o"])],
        "body",
        [value("s", (1,)), value("e", (1,))],
        [value("t", (1,)), value("o", (1,))],
    )
    nodes = [h.make_node("Expand", ["x", "n"], ["long"])]
    nodes.append(h.make_node("Scan", ["zero", "long"], ["y", "all"], body=body, num_scan_inputs=1))
    constants = [constant("n", np.array([min(turns, 5 * 10**7), 1])), constant("zero", np.zeros(1, np.float32))]
    return model_of(nodes, [value("x", (1, 1))], [value("y", (1,))], constants).SerializeToString()


def long_arithmetic(draw: random.Random) -> bytes:
    """Matrix products, a pool or a recurrent node that take hours, without a large tensor."""
    kind = draw.randrange(3)
    if kind == 0:
        names = ["x", *(f"t{at}" for at in range(400)), "y"]
        products = [h.make_node("MatMul", [one, "x"], [other]) for one, other in itertools.pairwise(names)]
        return model_of(products, [value("x", (8000, 8000))], [value("y", (8000, 8000))]).SerializeToString()
    if kind == 1:
        pool = h.make_node("MaxPool", ["x"], ["y"], kernel_shape=[4000, 4000], pads=[2000] * 4)
        return model_of([pool], [value("x", (1, 1, 4000, 4000))], [value("y", None)]).SerializeToString()
    weights = [constant("w", np.ones((1, 1, 1), np.float32))]
    nodes = [h.make_node("Expand", ["x", "n"], ["long"]), h.make_node("RNN", ["long", "w", "w"], ["", "y"], hidden_size=1)]
    constants = [*weights, constant("n", np.array([250_000_000, 1, 1]))]
    return model_of(nodes, [value("x", (1, 1, 1))], [value("y", None)], constants).SerializeToString()


def slow_pattern(draw: random.Random) -> bytes:
    """A RegexFullMatch whose pattern takes years where one way after the other is tried."""
    pattern = draw.choice(("(a+)+", "(a|aa)+", "(a*)*(a*)*b", "(?:a{0,1000}){0,1000}"))
    texts = constant("t", np.array(["a" * 60 + "c"], object))
    nodes = [h.make_node("RegexFullMatch", ["t"], ["m"], pattern=pattern), h.make_node("Cast", ["m"], ["f"], to=T.FLOAT)]
    return model_of(
        [*nodes, h.make_node("Add", ["x", "f"], ["y"])], [value("x")], [value("y", None)], [texts]
    ).SerializeToString()


def fed_repetition(draw: random.Random) -> bytes:
    """A Loop that goes on until a number which is computed from the input is reached, or for ever."""
    step = draw.choice((0.0, 1e-6, 1.0))
    nodes = [h.make_node("Add", ["a", "step"], ["next"]), h.make_node("ReduceMax", ["next"], ["most"], keepdims=0)]
    body = h.make_graph(
        [*nodes, h.make_node("Less", ["most", "limit"], ["still"])],
        "body",
        [value("i", (), T.INT64), value("go", (), T.BOOL), value("a")],
        [value("still", (), T.BOOL), value("next")],
    )
    constants = [constant("step", np.float32(step)), constant("limit", np.float32(100)), constant("yes", np.bool_(True))]
    loops = [h.make_node("Loop", ["", "yes", "x"], ["l"], body=body), h.make_node("Relu", ["l"], ["y"])]
    return model_of(loops, [value("x")], [value("y")], constants).SerializeToString()


def many_readers(draw: random.Random) -> bytes:
    """A tensor that thousands of nodes read, and one node that reads what all of them compute."""
    count = draw.choice((2_000, 30_000))
    nodes = [h.make_node(draw.choice(("Relu", "Neg")), ["x"], [f"t{at}"]) for at in range(count)]
    nodes.append(h.make_node(draw.choice(("Sum", "Max", "Mean")), [f"t{at}" for at in range(count)], ["y"]))
    return model_of(nodes, [value("x")], [value("y")]).SerializeToString()


def many_constants(draw: random.Random) -> bytes:
    """Thousands of initializers or Constant nodes, each read by one node."""
    count = draw.choice((2_000, 20_000))
    weights = [constant(f"w{at}", np.full(4, at, np.float32)) for at in range(count)]
    names = ["x", *(f"t{at}" for at in range(count - 1)), "y"]
    nodes = [h.make_node("Add", [names[at], f"w{at}"], [names[at + 1]]) for at in range(count)]
    if draw.random() < 0.5:
        made = [h.make_node("Constant", [], [weight.name], value=weight) for weight in weights]
        return model_of([*made, *nodes], [value("x")], [value("y")]).SerializeToString()
    return model_of(nodes, [value("x")], [value("y")], weights).SerializeToString()


def many_functions(draw: random.Random) -> bytes:
    """Thousands of functions, called once each or not at all."""
    count, opsets = draw.choice((1_000, 10_000)), [h.make_opsetid("", 20), h.make_opsetid("local", 1)]
    made = [h.make_function("local", f"F{at}", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"])], opsets) for at in range(count)]
    called = count if draw.random() < 0.5 else 1
    names = ["x", *(f"t{at}" for at in range(called - 1)), "y"]
    nodes = [h.make_node(f"F{at}", [names[at]], [names[at + 1]], domain="local") for at in range(called)]
    return model_of(nodes, [value("x")], [value("y")], functions=made).SerializeToString()


def many_branches(draw: random.Random) -> bytes:
    """Hundreds of If nodes one after the other, the condition of each computed from the result of the one before."""
    count = draw.choice((200, 2_000))
    names, nodes = ["x", *(f"t{at}" for at in range(count - 1)), "y"], []
    for at in range(count):
        read, made = names[at], names[at + 1]
        then = h.make_graph([h.make_node("Relu", [read], [f"a{at}"])], "then", [], [value(f"a{at}")])
        other = h.make_graph([h.make_node("Neg", [read], [f"b{at}"])], "else", [], [value(f"b{at}")])
        nodes += [
            h.make_node("ReduceMax", [read], [f"m{at}"], keepdims=0),
            h.make_node("Cast", [f"m{at}"], [f"c{at}"], to=T.BOOL),
        ]
        nodes.append(h.make_node("If", [f"c{at}"], [made], then_branch=then, else_branch=other))
    return model_of(nodes, [value("x")], [value("y")]).SerializeToString()


def long_texts(draw: random.Random) -> bytes:
    """Megabytes of documentation, metadata, operator sets or recorded types that say nothing."""
    model = model_of([h.make_node("Relu", ["x"], ["y"])], [value("x")], [value("y")])
    kind, count = draw.choice(("doc", "metadata", "opsets", "types", "strings")), draw.choice((10_000, 200_000))
    if kind == "doc":
        model.doc_string = model.graph.doc_string = model.producer_name = "\x1b[31mx" * count
    elif kind == "metadata":
        for at in range(count):
            model.metadata_props.add(key=f"k{at}", value="v")
    elif kind == "opsets":
        model.opset_import.extend(h.make_opsetid(f"domain{at}", 1) for at in range(count))
    elif kind == "types":
        model.graph.value_info.extend(value(f"nothing{at}", (f"size{at}", 4)) for at in range(count // 4))
    else:
        model.graph.initializer.append(h.make_tensor("words", T.STRING, [count], ["word"] * count))
    return model.SerializeToString()


BOMBS: dict[str, Callable[[random.Random], bytes]] = {
    each.__name__: each
    for each in (
        nested_functions,
        recursive_functions,
        long_chain,
        doubled_chain,
        many_inputs,
        many_outputs,
        deep_branches,
        filled_shape,
        repeated_tiles,
        outer_product,
        large_input,
        endless_loop,
        growing_loop,
        long_names,
        doubled_ranks,
        repeated_constants,
        malformed_equation,
        long_repetition,
        fed_repetition,
        long_arithmetic,
        slow_pattern,
        many_readers,
        many_constants,
        many_functions,
        many_branches,
        long_texts,
    )
}
