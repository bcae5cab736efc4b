"""In which order files are given to processes: as many wait as compute, and faults come last."""

from __future__ import annotations

from typing import Any

from tests.conftest import pytest_collection_modifyitems


class Item:
    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_faults_come_after_all_else_and_the_others_by_turns() -> None:
    nodes = ["chaos/test_a.py::one", "client/test_b.py::one", "client/test_b.py::two"]
    nodes += ["e2e/test_c.py::one", "kernels/test_d.py::one", "rpc/test_e.py::one"]
    items: list[Any] = [Item(f"tests/{node}") for node in nodes]
    pytest_collection_modifyitems(items)
    assert [item.nodeid.removeprefix("tests/") for item in items] == [
        "e2e/test_c.py::one",
        "kernels/test_d.py::one",
        "client/test_b.py::one",
        "client/test_b.py::two",
        "rpc/test_e.py::one",
        "chaos/test_a.py::one",
    ]
