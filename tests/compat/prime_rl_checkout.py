"""What the adapter for prime-rl builds on, in a checkout of it, which is read and not imported.

    python -m tests.compat.prime_rl_checkout PATH

prime-rl is in no package index. Ends with status 1 and a line for each thing that is another than
the adapter, `hooks.json` and the snippet in docs/adapters.md take it to be.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.compat.hooks import calls, recorded, written

POOL = "src/prime_rl/utils/client.py"
ALGORITHMS = "src/prime_rl/orchestrator/algo/__init__.py"
BASE = "src/prime_rl/orchestrator/algo/base.py"
OPD = "src/prime_rl/orchestrator/algo/opd.py"


def differences(checkout: Path) -> Iterator[str]:
    """What is another than it is taken to be."""
    for path in (POOL, ALGORITHMS, BASE, OPD):
        if not (checkout / path).is_file():
            yield f"there is no {path}"
            return
    for hook, parameters in recorded("prime_rl").items():
        yield from _signature(checkout / POOL, "InferencePool", hook, parameters)
    yield from _signature(checkout / OPD, "OPDAlgorithm", "setup", ["async"])
    registry = ast.parse((checkout / ALGORITHMS).read_text())
    if _registered(registry).get("opd") != "OPDAlgorithm":
        yield f'{ALGORITHMS} has no ALGORITHM_CLASSES["opd"] = OPDAlgorithm'
    if "ALGORITHM_CLASSES[config.type]" not in ast.unparse(registry):
        yield f"{ALGORITHMS} no longer takes its class from ALGORITHM_CLASSES"
    for path, cls, method, attribute in (
        (OPD, "OPDAlgorithm", "setup", "teacher_pool"),
        (BASE, "Algorithm", "__init__", "policy_pool"),
        (POOL, "InferencePool", "__init__", "model_name"),
    ):
        if f"self.{attribute}" not in _assigned(checkout / path, cls, method):
            yield f"{cls}.{method} does not set self.{attribute}"
    opd = ast.parse((checkout / OPD).read_text())
    asked = [ast.unparse(argument) for call in calls(opd, "score") for argument in call.args]
    if asked != ["branch.token_ids"]:
        yield f"{OPD} asks its teacher to score {asked}, not a branch's token_ids"
    if not {"self.teacher_pool"} <= {ast.unparse(n) for n in ast.walk(opd) if _is_read(n)}:
        yield f"{OPD} does not ask self.teacher_pool"


def _signature(path: Path, cls: str, method: str, parameters: list[str]) -> Iterator[str]:
    try:
        found = written(path, cls, method)
    except AssertionError as error:
        yield str(error)
        return
    if found != parameters:
        yield f"{cls}.{method} takes {found}, not {parameters}"


def _registered(tree: ast.Module) -> dict[str, str]:
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            (target,) = node.targets
        if isinstance(target, ast.Name) and target.id == "ALGORITHM_CLASSES":
            assert isinstance(node, (ast.Assign, ast.AnnAssign))
            classes = node.value
            assert isinstance(classes, ast.Dict)
            pairs = zip(classes.keys, classes.values, strict=True)
            return {k.value: ast.unparse(v) for k, v in pairs if isinstance(k, ast.Constant)}
    return {}


def _assigned(path: Path, cls: str, method: str) -> set[str]:
    """What a method assigns to."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name == cls:
            of_it = [m for m in node.body if getattr(m, "name", None) == method]
            assigned = [n for member in of_it for n in ast.walk(member) if _is_written(n)]
            return {ast.unparse(target) for target in assigned}
    return set()


def _is_written(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)


def _is_read(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)


def main() -> None:
    """Print what differs."""
    if len(sys.argv) != 2:
        sys.exit("python -m tests.compat.prime_rl_checkout PATH")
    found = [*differences(Path(sys.argv[1]))]
    print("\n".join(found) or "prime-rl is as the adapter takes it to be")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
