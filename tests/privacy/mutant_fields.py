"""Readers of documents with one bound of one field switched off: does any bad vector notice? See `mutants.py`."""

from __future__ import annotations

import ast
import importlib
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.privacy import readers
from tests.privacy.mutants import changed, forget, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALIASES = {
    "Hex32": ["str"],
    "SiteName": ["str"],
    "PersonName": ["str", "SiteName"],
    "Role": ["str"],
    "Profile": ["str"],
    "Decay": ["Annotated[float, Field(ge=0)]", "Annotated[float, Field(lt=1)]"],
    "Part": ["Annotated[float, Field(ge=0)]", "Annotated[float, Field(le=1)]"],
    "Amount": ["Annotated[float, Field(ge=0)]", "Annotated[float, Field(allow_inf_nan=False)]"],
    "Above": ["Annotated[float, Field(gt=0)]", "Annotated[float, Field(allow_inf_nan=False)]"],
    "Positive": ["Annotated[float, Field(gt=0)]", "Annotated[float, Field(allow_inf_nan=False)]"],
}

_BETWEEN = {"privacy.run.optimizer": ["privacy.run.settings"]}
"""Modules that a module's documents are part of, before the reader's."""


@dataclass(frozen=True)
class FieldMutant:
    """A class of a document in which a field may be more than it should."""

    module: str
    change: str
    tree: ast.Module
    reader: tuple[str, str]  # its module, and its name among the readers

    @property
    def name(self) -> str:
        """Which bound of which field is off."""
        return f"{self.module}.{self.change}"

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the reader use it."""
        module, name = self.reader
        with _instead(self.module, self.tree):
            reader = importlib.import_module(module)
            if module != self.module:
                with ExitStack() as stack:
                    for module_name in (*_BETWEEN.get(self.module, ()), module):
                        reader = stack.enter_context(_instead(module_name, parsed(module_name)))
        forget()
        with patch.object(readers, name, getattr(reader, name)):
            yield
        forget()


def field_mutants(module: str, reader: tuple[str, str]) -> list[FieldMutant]:
    """Return a mutant for every bound of every field of a module's documents."""
    tree, mutants = parsed(module), []
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef):
            for field in owner.body:
                if isinstance(field, ast.AnnAssign):
                    for relaxation, annotation in _relaxed(field.annotation):
                        name = f"{owner.name}.{ast.unparse(field.target)}: {relaxation}"
                        mutants.append(FieldMutant(module, name, changed(tree, {field.annotation: annotation}), reader))
            for decorator in owner.decorator_list:
                for change in ("extra='ignore'", "strict=False"):
                    if _is_strict(decorator):
                        other = changed(tree, {decorator: _configured(decorator, change)})
                        mutants.append(FieldMutant(module, f"{owner.name}: {change}", other, reader))
    return mutants


def _relaxed(annotation: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield types without one of the bounds of a type."""
    match annotation:
        case ast.Name(id=name) if name in _ALIASES:
            for text in _ALIASES[name]:
                yield f"{name} as {text}", _expression(text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            for relaxation, other in _relaxed(left):
                yield relaxation, ast.BinOp(other, ast.BitOr(), right)
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, ast.Call(keywords=words)])):
            yield from _unbounded(inner, words)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            base = "int" if isinstance(ast.literal_eval(values), int) else "str"
            yield f"any {base}", _expression(base)
        case ast.Subscript(value=ast.Name(id=outer), slice=ast.Tuple(elts=[first, second])):
            for change, other in _relaxed(first):
                yield change, _subscript(outer, other, second)
            for second_change, other in _relaxed(second):
                yield second_change, _subscript(outer, first, other)


def _unbounded(inner: ast.expr, words: list[ast.keyword]) -> Iterator[tuple[str, ast.expr]]:
    """Yield `Annotated` types without one of their bounds."""
    for word in words:
        rest = [part for part in words if part is not word]
        yield ast.unparse(word), _subscript("Annotated", inner, ast.Call(ast.Name("Field", ast.Load()), [], rest))
    for relaxation, other in _relaxed(inner):
        yield relaxation, _subscript("Annotated", other, ast.Call(ast.Name("Field", ast.Load()), [], words))


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _subscript(outer: str, *inner: ast.expr) -> ast.expr:
    return ast.Subscript(ast.Name(outer, ast.Load()), ast.Tuple(list(inner), ast.Load()), ast.Load())


def _is_strict(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and "config=STRICT" in ast.unparse(decorator)


def _configured(decorator: ast.expr, relaxation: str) -> ast.expr:
    return _expression(ast.unparse(decorator).replace("STRICT", f"{{**STRICT, **dict({relaxation})}}"))


@contextmanager
def _instead(name: str, tree: ast.Module) -> Iterator[ModuleType]:
    """Have a module's name mean one of another syntax tree."""
    module = ModuleType(name)
    with patch.dict(sys.modules, {name: module}):
        exec(compile(tree, f"<{name}>", "exec"), vars(module))  # noqa: S102 - our own source
        yield module
