"""What stands below the fields of a class, put where ``help`` shows it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ast


class _DocWithFields:
    """The ``__doc__`` of a class, with its fields; made when somebody asks, not at import."""

    def __init__(self, summary: str) -> None:
        self._summary = summary

    def __get__(self, instance: object, owner: type[Any]) -> str:
        # Python knows no texts of fields, so they are read from the source.
        fields = _field_docs(owner.__module__, owner.__name__)
        if not fields:
            return self._summary
        described = [f"    {name}: {text}" for name, text in fields.items()]
        return "\n".join([self._summary.rstrip(), "", "Attributes:", *described, ""])


def show_field_docs(cls: type[Any]) -> None:
    """Have ``help`` show the texts below the fields of a class and of its bases."""
    doc = _DocWithFields(cls.__doc__ or "")
    # Of a class with a metaclass, such as a TypedDict, `help` takes what lies there as it is.
    lazy: Any = doc if type(cls) is type else doc.__get__(None, cls)
    cls.__doc__ = lazy


def _field_docs(module: str, name: str) -> dict[str, str]:
    """Return the texts below a class's fields, those of its bases first; none without the source.

    A class without fields of its own has none: what its base has stands there.
    """
    import importlib

    node = _classes(module).get(name)
    if node is None or not (own := _own_field_docs(node)):
        return {}
    inherited: dict[str, str] = {}
    for base in node.bases:
        found = getattr(importlib.import_module(module), getattr(base, "id", ""), None)
        if isinstance(found, type):
            inherited |= _field_docs(found.__module__, found.__name__)
    return inherited | own


def _own_field_docs(node: ast.ClassDef) -> dict[str, str]:
    import ast
    from inspect import cleandoc

    docs: dict[str, str] = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = cleandoc(str(below.value.value))
            docs[field.target.id] = text.replace("\n", "\n        ")
    return docs


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """Return the classes of a module by name; none where its source is not at hand."""
    import ast
    import importlib
    import inspect

    try:
        source = inspect.getsource(importlib.import_module(module))
    except (OSError, TypeError):
        return {}
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
