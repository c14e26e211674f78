"""Read from the forward of a module what the layers inside it are given.

Names do not say which norm feeds a projection: ``norm1`` comes before the attention in some
blocks and after it in others. It is read from the source of ``forward``. What cannot be followed
with certainty (loops, functions, branches that differ) is unknown.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from stableopt.layouts.flow import Flow, Value, agreed, through
from stableopt.layouts.norms import is_norm
from stableopt.layouts.reader import Reader
from stableopt.layouts.tree import Tree, join


def flow_of(module: nn.Module) -> Flow:
    """Read the forward of a module; nothing is known where there is no source of it.

    Example:
        >>> flow_of(nn.TransformerEncoderLayer(8, 2)).arguments[:1]
        ('src',)
    """
    if isinstance(module, nn.Sequential):
        return _sequential(module)
    try:
        source = textwrap.dedent(inspect.getsource(type(module).forward))
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, AttributeError):
        return Flow()
    if not isinstance(tree, ast.FunctionDef):
        return Flow()
    reader = Reader(module, tree)
    reader.block(tree.body)
    return reader.flow


def feeding_norm(
    tree: Tree, name: str, paths: Iterable[tuple[str, int, str]]
) -> tuple[str, float] | None:
    """Return the norm whose output is what all of the given layers see, and the dropout between.

    Args:
        tree: The model.
        name: The module whose forward is read.
        paths: Path in that module, position and keyword of the argument, of every layer.

    Returns:
        Its name and the probability; ``None`` if there is none, or it is not certain.
    """
    module = tree.get(name)
    if module is None:
        return None
    flow = flow_of(module)
    value = agreed(flow.given(*path) for path in paths)
    return None if value is None else _resolve(tree, name, flow, value)


def returned_layer(tree: Tree, name: str) -> tuple[str, str] | None:
    """Return the layer whose output a module returns.

    Returns:
        The module that calls it and the path from there, or the path of its weight where the
        call is ``F.linear(x, self.layer.weight)``; ``None`` if it is not certain.
    """
    while (module := tree.get(name)) is not None:
        value = agreed(flow_of(module).returned)
        if value is None or value.kind != "output" or value.dropout:
            return None
        inner = tree.get(join(name, value.name))
        if inner is None or not any(True for _ in inner.children()):
            return name, value.name
        name = join(name, value.name)
    return None


def _resolve(tree: Tree, name: str, flow: Flow, value: Value) -> tuple[str, float] | None:
    """Follow a value out of the module, or into another one, to a norm."""
    if value.kind == "output":
        found = join(name, value.name)
        if not is_norm(tree.get(found)):
            last = returned_layer(tree, found)
            found = "" if last is None else join(*last)
            return (found, value.dropout) if is_norm(tree.get(found)) else None
        return found, value.dropout
    outside = tree.parent(name)
    module = None if outside is None else tree.get(outside[0])
    if outside is None or module is None:
        return None
    outer = flow_of(module)
    if value.name not in flow.arguments:
        return None
    given = outer.given(outside[1], flow.arguments.index(value.name), value.name)
    if given is None:
        return None
    survives = (1 - given.dropout) * (1 - value.dropout)
    return _resolve(tree, outside[0], outer, replace(given, dropout=1 - survives))


def _sequential(module: nn.Sequential) -> Flow:
    flow = Flow(arguments=("input",))
    value: Value | None = Value("argument", "input")
    for path, layer in module.named_children():
        flow.inputs[path] = [{0: value}]
        value = through(layer, path, value)
    flow.returned.append(value)
    return flow
