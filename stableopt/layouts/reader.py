"""Follow the statements of a forward."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from torch import nn

from stableopt.layouts.flow import Flow, Value, agreed, through

_SAME_FEATURES = frozenset(
    {"clone", "contiguous", "flatten", "float", "reshape", "to", "type_as", "unsqueeze", "view"}
)
"""Methods that leave the vectors of a tensor as they are."""

_SAME_TOKENS = frozenset({"slice_logits_to_keep"})
"""Functions of transformers that leave the vectors of their first argument as they are."""

_MODEL_OUTPUT = ("last_hidden_state", "logits")
"""Fields of a returned object that are its first."""


class Reader:
    """Walks the statements of a forward in their order and notes what every layer is given."""

    def __init__(self, module: nn.Module, function: ast.FunctionDef) -> None:
        self._module = module
        arguments = [*function.args.posonlyargs, *function.args.args][1:]
        arguments += function.args.kwonlyargs
        self.flow = Flow(arguments=tuple(a.arg for a in arguments))
        self._known: dict[str, Value | None] = {a.arg: Value("argument", a.arg) for a in arguments}

    def block(self, statements: list[ast.stmt]) -> bool:
        """Walk statements; return whether what follows them is reached."""
        return all(self._statement(statement) for statement in statements)

    def _statement(self, node: ast.stmt) -> bool:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            self._assign(node)
        elif isinstance(node, ast.If):
            return self._branch(node)
        elif isinstance(node, ast.Return):
            self.flow.returned.append(self._first(node.value))
            return False
        elif isinstance(node, ast.Raise):
            return False
        elif isinstance(node, ast.With):
            for item in node.items:
                self._value(item.context_expr)
            self._forget(item.optional_vars for item in node.items if item.optional_vars)
            return self.block(node.body)
        elif isinstance(node, ast.Expr):
            self._value(node.value)
        else:
            self._opaque(node)
        return True

    def _assign(self, node: ast.Assign | ast.AnnAssign) -> None:
        value = None if node.value is None else self._value(node.value)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                self._known[target.id] = value
            else:
                first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else None
                self._forget([target])
                # ``out, _ = layer(x)``: the first of what a layer returns.
                one_call = isinstance(node.value, ast.Call) and value is not None
                if isinstance(first, ast.Name) and one_call:
                    self._known[first.id] = value

    def _branch(self, node: ast.If) -> bool:
        self._value(node.test)
        test = self._constant(node.test)
        if test is not None:
            return self.block(node.body if test else node.orelse)
        before = dict(self._known)
        first = self.block(node.body)
        after_first, self._known = self._known, before
        second = self.block(node.orelse)
        if not second:
            self._known = after_first
        elif first:
            mine = self._known
            names = after_first.keys() | mine.keys()
            self._known = {
                n: mine.get(n) if mine.get(n) == after_first.get(n) else None for n in names
            }
        return first or second

    def _opaque(self, node: ast.stmt) -> None:
        """Walk a statement that may run any number of times: what it changes is unknown."""
        self._forget([node])
        if isinstance(node, (ast.For, ast.While)):
            self._value(node.iter if isinstance(node, ast.For) else node.test)
            self.block([*node.body, *node.orelse])
        else:
            self._lose(node)
        self._forget([node])

    def _forget(self, nodes: Iterable[ast.AST]) -> None:
        """Forget every name that is written to, also in part."""
        for node in nodes:
            for inner in ast.walk(node):
                if isinstance(getattr(inner, "ctx", None), ast.Store):
                    for name in ast.walk(inner):
                        if isinstance(name, ast.Name):
                            self._known[name.id] = None

    def _lose(self, node: ast.AST) -> None:
        """Note that the layers called somewhere in ``node`` are given what is unknown."""
        for inner in ast.walk(node):
            path = _path(inner.func) if isinstance(inner, ast.Call) else None
            if path is not None:
                self.flow.inputs.setdefault(path, []).append({})
            if isinstance(inner, ast.Return):
                self.flow.returned.append(None)

    def _first(self, node: ast.expr | None) -> Value | None:
        """Return where the first of what is returned comes from."""
        if isinstance(node, ast.Tuple) and node.elts:
            values = [self._value(element) for element in node.elts]
            return values[0]
        value = None if node is None else self._value(node)
        if value is None and isinstance(node, ast.Call):
            fields = {k.arg: k.value for k in node.keywords if k.arg}
            for name in _MODEL_OUTPUT:
                if name in fields:
                    return self._value(fields[name])
        return value

    def _value(self, node: ast.expr) -> Value | None:
        """Return where the value of an expression comes from; note the layers called in it."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id)
        if isinstance(node, ast.NamedExpr):
            self._known[node.target.id] = self._value(node.value)
            return self._known[node.target.id]
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.IfExp):
            test = self._constant(node.test)
            if test is not None:
                return self._value(node.body if test else node.orelse)
            return agreed([self._value(node.body), self._value(node.orelse)])
        if isinstance(node, ast.Subscript):
            # Other elements of a tuple come from elsewhere.
            other = isinstance(node.slice, ast.Constant) and node.slice.value != 0
            value = self._value(node.value)
            return None if other else value
        if isinstance(node, _SCOPES):
            self._lose(node)
            return None
        if isinstance(node, ast.Attribute):
            value = self._value(node.value)
            return value if node.attr in _MODEL_OUTPUT else None
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.expr):
                self._value(inner)
        return None

    def _call(self, node: ast.Call) -> Value | None:
        given: dict[int | str, Value | None] = {
            i: self._value(argument) for i, argument in enumerate(node.args)
        }
        given |= {k.arg or "**": self._value(k.value) for k in node.keywords}
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            given = {}
        path = _path(node.func)
        if path is not None:
            layer = self._layer(path)
            if layer is None:
                return None
            self.flow.inputs.setdefault(path, []).append(given)
            return through(layer, path, given.get(0))
        if not isinstance(node.func, (ast.Attribute, ast.Name)):
            return None
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        if name == "linear":
            return self._linear(node, given)
        if name in _SAME_TOKENS:
            return given.get(0)
        if not isinstance(node.func, ast.Attribute):
            return None
        value = self._value(node.func.value)
        if name.endswith("_") and isinstance(node.func.value, ast.Name):
            self._known[node.func.value.id] = None  # changed in place
        return value if name in _SAME_FEATURES else None

    def _linear(self, node: ast.Call, given: dict[int | str, Value | None]) -> Value | None:
        """Read ``F.linear(x, self.layer.weight)`` as a call of that weight."""
        fields = dict(enumerate(node.args)) | {k.arg: k.value for k in node.keywords}
        weight = fields.get(1, fields.get("weight"))
        path = None if weight is None else _path(weight)
        if path is None or not path.endswith(".weight"):
            return None
        self.flow.inputs.setdefault(path, []).append({0: given.get(0, given.get("input"))})
        return Value("output", path)

    def _layer(self, path: str) -> nn.Module | None:
        found: object = self._module
        for part in path.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, nn.Module) else None

    def _constant(self, node: ast.expr) -> bool | None:
        """Return what a condition on the module itself is; ``None`` for any other."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._constant(node.operand)
            return None if inner is None else not inner
        path = _path(node)
        if path is not None and "." not in path:
            value = getattr(self._module, path, _MISSING)
            return value if isinstance(value, bool) and path != "training" else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            on_self = bool(node.args) and _is_self(node.args[0])
            if node.func.id == "hasattr" and on_self and len(names) == 1:
                return hasattr(self._module, str(names[0]))
        return self._is_none(node) if isinstance(node, ast.Compare) else None

    def _is_none(self, node: ast.Compare) -> bool | None:
        path = _path(node.left)
        to_none = isinstance(node.comparators[0], ast.Constant) and (
            node.comparators[0].value is None
        )
        if path is None or "." in path or not to_none or len(node.ops) != 1:
            return None
        missing = getattr(self._module, path, _MISSING) is None
        if isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            return missing == isinstance(node.ops[0], ast.Is)
        return None


_MISSING = object()
_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _path(node: ast.expr) -> str | None:
    """Return ``a.b`` for ``self.a.b``."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if parts and _is_self(node) else None
