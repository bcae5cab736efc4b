"""What the compiler makes of kernels, where numbers depend on it: no interpreter shows that.

For sm_90, in a process of its own, because others here have the kernels as the interpreter's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.served import ROOT

pytest.importorskip("triton", reason="Triton is published for Linux only")

Code = dict[str, dict[str, str]]
"""By a build's name: "ptx", which is assembled, and "ttgir", which says what threads hold."""

STATISTICS = ("block_statistics fp32", "block_statistics fp32 / temperature",
              "block_statistics fp32 untargeted")  # fmt: skip
NAMES = (
    *STATISTICS,
    *(
        f"{kernel} {kind}"
        for kernel in ("linear_at", "linear_statistics")
        for kind in ("fp32", "bf16")
    ),
    "rotate_heads fp32",
    "rotate_heads bf16",
)

COMPILE = """
import json, sys
from tools.compile_kernels import STRICT, builds, compiled
found = {}
for build in builds(STRICT):
    if build.name in sys.argv[1:]:
        code = compiled(build, STRICT).asm
        found[build.name] = {kind: code[kind] for kind in ("ptx", "ttgir")}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Code:
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    env.pop("TRITON_INTERPRET", None)
    said = subprocess.run(
        [sys.executable, "-c", COMPILE, *NAMES],
        cwd=Path(ROOT), env=env, capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip
    found: Code = json.loads(said.stdout)
    assert set(found) == set(NAMES)
    return found


def test_products_of_float32_take_their_factors_whole(code: Code) -> None:
    for kernel in ("linear_at", "linear_statistics"):
        assert "fma.rn.f32" in code[f"{kernel} fp32"]["ptx"]
        assert "tf32" not in code[f"{kernel} fp32"]["ptx"]


def test_a_targets_logit_comes_of_the_same_products(code: Code) -> None:
    """So deep, of such types: how many columns one of them has adds nothing up."""
    depths = [
        set(re.findall(r"mma\S*\.m64n\d+(k\d+\S+)", code[f"{kernel} bf16"]["ptx"]))
        for kernel in ("linear_at", "linear_statistics")
    ]
    assert depths == [{"k16.f32.bf16.bf16"}] * 2


def test_x_is_divided_as_torch_divides(code: Code) -> None:
    ptx = code["block_statistics fp32 / temperature"]["ptx"]
    assert "div.rn.f32" in ptx
    assert not re.findall(r"div\.(?:full|approx)", ptx)


def test_rotations_round_after_each_operation(code: Code) -> None:
    for kind in ("fp32", "bf16"):
        ptx = code[f"rotate_heads {kind}"]["ptx"]
        assert "mul.rn" in ptx
        assert "fma" not in ptx


def test_sums_of_a_row_are_taken_alike_whatever_is_asked(code: Code) -> None:
    """The order of an fp32 sum is how its terms are spread over threads."""
    spreads = []
    for name in STATISTICS:
        ttgir = code[name]["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = (#ttg\S+<.*>)$", ttgir, flags=re.MULTILINE))
        sums = re.findall(r"\(tensor<4096xf32, (#\w+)>\) -> f32", ttgir)
        assert len(sums) == 3  # the largest x, and two sums
        spreads.append([layouts[layout] for layout in sums])
    assert spreads[0] == spreads[1] == spreads[2]
