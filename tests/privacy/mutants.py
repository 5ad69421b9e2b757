"""Readers with one check switched off: does any bad vector notice?

A mutant is a function without one of its refusals: a condition that never holds, a call that is left out, a rule of a
table that is missing, an error that is not turned into one of ours. It takes its function's place, wherever that was
imported, for as long as it is looked at: see `in_place`. Bounds of fields are switched off in `mutant_fields.py`.
"""

from __future__ import annotations

import ast
import copy
import importlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import getsource
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from privacy.codec import header
from privacy.crypto import encryption
from privacy.run import roster
from privacy.run.plan import read_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    Change = dict[ast.AST, ast.AST]  # what stands where, in place of what
    Changes = Iterator[tuple[str, Change]]

_CHECKS = ("check", "_check", "verify", "finish")  # how functions are called that refuse by themselves
_REFUSING = {"lacks"}


@dataclass(frozen=True)
class Mutant:
    """A function without one check."""

    module: str
    function: str
    check: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Which check of which function is off."""
        return f"{self.module}.{self.function}: {self.check}"

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have it take its function's place."""
        original = _function(self.module, self.function)
        code = original.__code__
        original.__code__ = _code(compile(self.tree, f"<{self.check}>", "exec"), self.function)
        forget()
        try:
            yield
        finally:
            original.__code__ = code
            forget()


def mutants_of(module: str, function: str) -> list[Mutant]:
    """Return a mutant for every check in a function, such as `SignedDocument.open`."""
    tree = parsed(module)
    node = _find(tree, function.split("."))
    return [Mutant(module, function, check, changed(tree, change)) for check, change in _Checks(node).off()]


def refusing_functions(module: str) -> set[str]:
    """Return the functions of a module that refuse anything."""
    return {
        path
        for path, node in _functions(parsed(module), "")
        if any(isinstance(inner, ast.Raise) for inner in ast.walk(node)) or next(_Checks(node).off(), None)
    }


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")


@cache
def parsed(module: str) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(getsource(importlib.import_module(module)))


def changed(tree: ast.Module, change: Change) -> ast.Module:
    """Return a tree in which one node replaces another; they share all others."""
    for old, new in change.items():
        ast.fix_missing_locations(ast.copy_location(new, old))
    other = _replaced(tree, {id(old): new for old, new in change.items()})
    assert isinstance(other, ast.Module)
    return other


def _replaced(node: ast.AST, others: dict[int, ast.AST]) -> ast.AST:
    """Return what takes a node's place: another one, the node itself, or a copy if something in it is replaced."""
    if id(node) in others:
        return others[id(node)]
    parts: dict[str, Any] = {}
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            part = _replaced(value, others)
            if part is not value:
                parts[name] = part
        elif isinstance(value, list):
            several = [_replaced(inner, others) if isinstance(inner, ast.AST) else inner for inner in value]
            if any(new is not old for new, old in zip(several, value, strict=True)):
                parts[name] = several
    if not parts:
        return node
    copied = copy.copy(node)
    for name, part in parts.items():
        setattr(copied, name, part)
    return copied


def forget() -> None:
    """Clear what was read, so that it is read again."""
    for cached in (header._read, roster._read, encryption._key, read_plan):
        cached.cache_clear()


class _Checks:
    """The checks of one function."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self._function = function

    def off(self) -> Changes:
        """Yield what to change to switch each of them off."""
        for node in ast.walk(self._function):
            for changes in (self._branches, self._statements, self._loops, self._filters, self._answers):
                yield from changes(node)

    def _branches(self, node: ast.AST) -> Changes:
        if isinstance(node, ast.If):
            if _refuses(node.body):
                yield from self._condition(node.test, holds=False)
            elif self._is_needed(node):
                yield from self._condition(node.test, holds=True)

    def _statements(self, node: ast.AST) -> Changes:
        match node:
            case ast.Expr(value=ast.Call() as call) if _called(call).startswith(_CHECKS):
                yield ast.unparse(node), {node: ast.Pass()}
            case ast.ExceptHandler(type=kind, body=[*_, ast.Raise()]):
                bare = ast.ExceptHandler(type=kind, name=None, body=[ast.Raise()])
                yield f"except {ast.unparse(kind) if kind else ''}", {node: bare}

    def _loops(self, node: ast.AST) -> Changes:
        if isinstance(node, ast.For) and any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
            yield from self._table(node.iter)

    def _filters(self, node: ast.AST) -> Changes:
        """Yield what to change so that nothing is left out, or everything can be."""
        if isinstance(node, ast.comprehension | ast.Lambda):
            for test in node.ifs if isinstance(node, ast.comprehension) else [node.body]:
                if isinstance(test, ast.BoolOp):
                    yield from self._condition(test, holds=True)

    def _answers(self, node: ast.AST) -> Changes:
        match node:
            case ast.Return(value=ast.Compare() | ast.Constant(value=False)) if self._is_question:
                yield ast.unparse(node), {node: ast.Return(ast.Constant(value=True))}
            case ast.Return(value=ast.expr() as value) if not self._is_question:
                yield from _complaints(value)

    @property
    def _is_question(self) -> bool:
        return self._function.returns is not None and ast.unparse(self._function.returns) == "bool"

    def _condition(self, test: ast.expr, *, holds: bool) -> Changes:
        """Yield what to change so that a condition, or a part of it, always holds, or never does."""
        match test:
            case ast.BoolOp(op=op, values=parts) if isinstance(op, ast.And if holds else ast.Or):
                for part in parts:
                    yield from self._condition(part, holds=holds)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield from self._condition(operand, holds=not holds)
            case ast.Call(func=ast.Name(id=name), args=[ast.GeneratorExp(elt=element)]) if (
                name == ("any", "all")[holds]
            ):
                yield from self._condition(element, holds=holds)
            case ast.Name(id=name) if isinstance(self._assigned.get(name), ast.BoolOp | ast.Compare):
                yield from self._condition(self._assigned[name], holds=holds)
            case ast.Compare(ops=[op], left=left, comparators=[right]) if isinstance(
                op, ast.Eq if holds else ast.NotEq
            ):
                yield from self._equal(test, left, right, holds=holds)
            case ast.Compare(ops=[_]):
                yield from self._membership(test, holds=holds)
            case ast.Compare() if holds:
                yield from _links(test)
            case _:
                yield ast.unparse(test), {test: ast.Constant(holds)}

    def _membership(self, test: ast.Compare, *, holds: bool) -> Changes:
        match test:
            case ast.Compare(ops=[ast.In()], comparators=[ast.Set(elts=[_, _, *_] as ones) as row]) if not holds:
                for number, part in enumerate(ones):
                    yield f"{ast.unparse(test)}: {ast.unparse(part)}", {row: _without(row, number)}
            case _:
                yield ast.unparse(test), {test: ast.Constant(holds)}

    def _equal(self, test: ast.expr, left: ast.expr, right: ast.expr, *, holds: bool) -> Changes:
        """Yield what to change so that two things, or parts of them, count as equal."""
        one, other = (
            self._assigned.get(side.id, side) if isinstance(side, ast.Name) else side for side in (left, right)
        )
        match one, other:
            case ast.Tuple(elts=ones), ast.Tuple(elts=others) if len(ones) == len(others):
                for number, part in enumerate(ones):
                    yield ast.unparse(part), {one: _without(one, number), other: _without(other, number)}
            case ast.Set(elts=[_, _, *_] as ones), _:
                for number, part in enumerate(ones):
                    yield ast.unparse(part), {one: _without(one, number)}
            case _:
                yield ast.unparse(test), {test: ast.Constant(holds)}

    def _table(self, rules: ast.expr) -> Changes:
        """Yield a table of rules without one of them."""
        if isinstance(rules, ast.Call) and _called(rules) == "items" and isinstance(rules.func, ast.Attribute):
            rules = rules.func.value
        table = self._assigned.get(rules.id, rules) if isinstance(rules, ast.Name) else rules
        if isinstance(table, ast.Tuple):
            for number, rule in enumerate(table.elts):
                if isinstance(rule, ast.Tuple):  # what must hold, and what to say otherwise
                    yield from self._condition(rule.elts[0], holds=True)
                else:
                    yield ast.unparse(rule), {table: _without(table, number)}
        if isinstance(table, ast.Dict):
            for number, key in enumerate(table.keys):
                keys, values = table.keys[:], table.values[:]
                del keys[number], values[number]
                yield ast.unparse(key) if key else "", {table: ast.Dict(keys, values)}

    def _is_needed(self, node: ast.If) -> bool:
        """Whether a function refuses unless a condition holds."""
        last = self._function.body[-1]
        returns = isinstance(node.body[-1], ast.Return) and _refuses([last])
        keeps = isinstance(node.body[-1], ast.Assign) and isinstance(node.body[-1].targets[0], ast.Subscript)
        return (returns or keeps) and any(isinstance(inner, ast.Raise) for inner in ast.walk(self._function))

    @cached_property
    def _assigned(self) -> dict[str, ast.expr]:
        """The values of names that are assigned once."""
        values: dict[str, list[ast.expr]] = {}
        for node in ast.walk(self._function):
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                pairs = zip(target.elts, value.elts, strict=False) if (
                    isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                ) else [(target, value)]  # fmt: skip
                for name, expression in pairs:
                    values.setdefault(ast.unparse(name), []).append(expression)
        return {name: assigned[0] for name, assigned in values.items() if len(assigned) == 1}


def _links(test: ast.Compare) -> Changes:
    """Yield a chain of comparisons without one of them."""
    terms = zip([test.left, *test.comparators], test.ops, test.comparators, strict=False)
    parts = [ast.Compare(one, [op], [other]) for one, op, other in terms]
    for number, part in enumerate(parts):
        others = parts[:number] + parts[number + 1 :]
        yield ast.unparse(part), {test: ast.BoolOp(ast.And(), [*others, ast.Constant(value=True)])}


def _refuses(body: list[ast.stmt]) -> bool:
    """Whether statements end in a refusal, or note one."""
    match body[-1]:
        case ast.Raise() | ast.Return(value=ast.Constant(value=str()) | ast.JoinedStr()):
            return True
        case ast.Assign(targets=[ast.Name(id="wrong")]):
            return True
        case ast.Expr(value=ast.Call() as call):
            return _called(call) in _REFUSING
        case ast.Return(value=ast.Name(id="problem")):
            return True
        case _:
            return False


def _complaints(value: ast.expr) -> Changes:
    """Yield values that are returned without one of the complaints that they may be."""
    match value:
        case ast.IfExp(body=ast.Constant(value=str())) | ast.IfExp(orelse=ast.Constant(value=str())):
            yield ast.unparse(value.test), {value: ast.Constant(None)}
        case ast.BoolOp(op=ast.Or(), values=parts) if all(isinstance(part, ast.Call) for part in parts):
            for part in parts:
                yield ast.unparse(part), {part: ast.Constant(None)}


def _without(row: Any, number: int) -> ast.AST:  # noqa: ANN401 - a tuple or a set
    elements = row.elts[:number] + row.elts[number + 1 :]
    return ast.Tuple(elements, ast.Load()) if isinstance(row, ast.Tuple) else ast.Set(elements)


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _find(tree: ast.AST, path: list[str]) -> ast.FunctionDef:
    for name in path:
        tree = next(node for node in ast.iter_child_nodes(tree) if getattr(node, "name", None) == name)
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _function(module: str, path: str) -> FunctionType:
    owner: Any = importlib.import_module(module)
    for name in path.split("."):
        owner = vars(owner)[name]
    for wrapper in ("__wrapped__", "__func__", "fget", "func"):
        owner = getattr(owner, wrapper, owner)
    assert isinstance(owner, FunctionType)
    return owner


def _code(code: CodeType, path: str) -> CodeType:
    """Find a function's code in that of its module."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == path:
                return constant
            if path.startswith(f"{constant.co_qualname}."):
                return _code(constant, path)
    raise LookupError(path)
