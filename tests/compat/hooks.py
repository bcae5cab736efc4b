"""The frameworks' hooks as recorded from the real packages, for where these are not installed.

`hooks.json` holds what `described` says of them; the tests beside the real packages hold it to
that.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOOKS = Path(__file__).with_name("hooks.json")


def recorded(framework: str) -> dict[str, Any]:
    """Hook -> its parameters, of one framework."""
    return json.loads(HOOKS.read_text())[framework]["hooks"]


def described(function: Callable[..., Any]) -> list[str]:
    """Each parameter with its default, without self; before them "async" where it is."""
    found = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]
    return ["async", *found] if inspect.iscoroutinefunction(function) else found


def written(path: Path, cls: str, method: str) -> list[str]:
    """The same of a method in a source file, which is not imported."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name == cls:
            for member in node.body:
                if getattr(member, "name", None) == method:
                    return _parameters(member)
    raise AssertionError(f"{path.name} has no {cls}.{method}")


def source_of(module: str) -> ast.Module:
    """A module's source, which is not imported: a trainer's imports what only training needs."""
    package, *inside = module.split(".")
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return ast.parse(Path(found.origin).parent.joinpath(*inside).with_suffix(".py").read_text())


def calls(tree: ast.AST, method: str) -> list[ast.Call]:
    """The calls of a method, on whatever object."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == method
    ]


def _parameters(function: ast.AST) -> list[str]:
    assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
    arguments = function.args
    names = [argument.arg for argument in arguments.args]
    gaps = len(names) - len(arguments.defaults)
    defaults = [""] * gaps + [f"={ast.unparse(d)}" for d in arguments.defaults]
    found = [n + d for n, d in zip(names, defaults, strict=True) if n != "self"]
    return ["async", *found] if isinstance(function, ast.AsyncFunctionDef) else found
