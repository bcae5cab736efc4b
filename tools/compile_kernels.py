"""Compiles every Triton kernel for the GPUs that are served and reports what each takes.

Those that tests compare them with, too, as large as tests launch them: the largest of them.
`make check` runs it, no GPU needed: the interpreter, which tests kernels on a CPU, accepts what the
compiler may refuse. Registers and spills are said by ptxas, which comes with Triton. A spill in a
hot kernel on sm_90 fails, and more shared memory than the smallest of the served GPUs has. Several
at a time; what was compiled before comes from Triton's cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scoring_service.kernels.gpu import (
    attention,
    attention_work,
    bracket,
    candidates,
    gated_activation,
    gradient,
    join_parts,
    linear,
    linear_head,
    linear_race,
    race,
    rms_norm,
    rotary,
    rows,
    search,
    statistics,
    support,
    truncation,
    write_kv,
)
from tests.kernels.gpu import wrong_kernels

ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
STRICT = 90
"""Where a spill in a hot kernel is an error."""

SHARED_BYTES = 99 << 10
"""Of a block on compute capabilities 8.6, 8.9 and 12.0; the three compiled for have 163 or more."""

_LIBRARY = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_PARTIALS = "*fp32 *fp32 *fp32 *i32 *i32"
_VOCAB = 151_936
_BLOCKS = 64  # of a row of so many columns, rounded up
_MULTIPLES_OF_16 = ("vocab", "shard", "hidden_size")
_PROCESSES = 8  # at most: each has torch in memory
_BITS = {"fp32": 32, "bf16": 16, "fp16": 16}
_HEAD = {"BIASED": True, "SCALED": False, "CAPPED": False, "UPCAST": False}
_FINISHED_HEAD = {"BIASED": False, "SCALED": True, "CAPPED": True, "UPCAST": False}


@dataclass(frozen=True)
class Build:
    """One kernel with the types and constants that it is launched with."""

    name: str
    kernel: Any
    types: str
    """Of its arguments in order, constants left out."""
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 8
    stages: int = 3
    hot: bool = True
    fusion: bool = True
    """Of products and sums into one operation."""


def builds(architecture: int) -> Iterator[Build]:
    """The launches of `kernels.gpu` at a vocabulary of 151,936.

    In every type that logits and weights may have; what a head does to its logits (bias, scale,
    soft-cap) in those that it costs most in.
    """
    for element in _BITS:
        yield from tiles(element)
        yield from linears(element, "", _HEAD, architecture)
    yield from linears("bf16", " scaled, capped", _FINISHED_HEAD, architecture)
    for combined in ("", " sums only"):
        yield Build(
            f"combine{combined}",
            statistics.combine,
            # Of sums alone, the pointers that are not used are the maxima's.
            f"{'*fp32 *fp32 *fp32 *fp32 *fp32 *fp32' if combined else f'{_PARTIALS} *fp32'} *fp64 "
            f"{'*fp32 *fp32 *fp32' if combined else '*fp32 *i32 *i32'} i32",
            {"SUMS_ONLY": bool(combined), "BLOCKS": _BLOCKS},
            warps=1,
        )
    for capped, kept in ((True, True), (False, False)):
        yield Build(
            f"truncated_gradient{' capped, labels kept' if kept else ''}",
            gradient.truncated_gradient,
            "*fp32 *fp32 *i64 *fp32 *i64 *fp64 *fp32 i32 i32 fp32 fp32",
            {"CAPPED": capped, "KEEP_LABELS": kept, "BLOCK": rows.BLOCK_COLUMNS},
        )
    yield from attentions()
    for element in _BITS:
        yield from bodies(element)
    yield Build(
        "finish_race", race.finish_race, "*fp32 *i32 *i64 i32", {"BLOCKS": _BLOCKS}, warps=1
    )
    yield from of_tests()


def of_tests() -> Iterator[Build]:
    """The kernels of `test_traps` that compare every token of a row with every other."""
    for kernel, types, modes in (
        (wrong_kernels.truncate, "*fp32 *i32 *fp64 *fp64 *i8 i32", ("right", "fp32", "lower ids")),
        (wrong_kernels.number, "*fp32 *i64 *fp32 i32 i32", ("guarded",)),
        (wrong_kernels.draw, "*fp32 *i8 *i64 *i64 *i64 *i64 i32", ("right", "fallback")),
    ):
        for mode in modes:
            constants = {"MODE": mode, "BLOCK": wrong_kernels.MAX_SQUARE}
            name = f"tests: {kernel.fn.__name__}, {mode}"
            yield Build(name, kernel, types, constants, warps=4, hot=False)


def tiles(element: str) -> Iterator[Build]:
    """What reads a tile of logits, or of x: the logits themselves at temperature 1."""
    for finish in ("", " / temperature", " capped / temperature", " untargeted"):
        tempered, targeted = "temperature" in finish, finish != " untargeted"
        x = "fp32" if tempered else element
        yield Build(
            f"block_statistics {element}{finish}",
            statistics.block_statistics,
            f"*{element} *fp32 *{'i64' if targeted else 'i32'} *{element} {_PARTIALS} "
            f"*{x} *i32 *{x} i32 i32 i32 i32 i32 i32 i32 i32 fp32 fp32",
            {
                "SCALED": "capped" in finish,
                "CAPPED": "capped" in finish,
                "TEMPERED": tempered,
                "TARGETED": targeted,
                "STORED": tempered,
                "GROUPED": True,
                "COUNTED": True,
                "BLOCK": rows.BLOCK_COLUMNS,
                "GROUP": statistics.GROUP_COLUMNS,
            },
        )
    yield Build(
        f"block_tail {element}",
        statistics.block_tail,
        f"*{element} *i64 *fp32 *fp32 i32 i32 i32",
        {"BLOCK": rows.BLOCK_COLUMNS},
    )
    searching = {"MIN_KEY": search.MIN_KEY, "BLOCK": search.BLOCK, "PIVOTS": search.PIVOTS}
    yield Build(
        f"top_candidates {element}",
        candidates.top_candidates,
        f"*{element} *{element} *fp32 *i32 *i32 *i64 *i64 i32 i32 i32 i32 i32 i32",
        {
            **searching,
            "KEYS": search.LIST_KEYS,
            "GROUP": statistics.GROUP_COLUMNS,
            "SIDE": candidates.SIDE,
        },
    )
    yield from supports(element)
    for filtered in (False, True):
        numbers = "*i32 *i32 *i64 *i32" if filtered else "*i32 *i32 *i32 *i32"
        yield Build(
            f"race {element}{' filtered' if filtered else ''}",
            race.race,
            f"*{element} *fp32 {numbers} *i64 *i64 *i64 *fp32 *i32 i32 i32 i32",
            {
                "MIN_KEY": search.MIN_KEY,
                "FILTERED": filtered,
                "LIST": truncation.LIST if filtered else 1,
                "BLOCK": rows.BLOCK_COLUMNS,
                "CHUNK": race.CHUNK,
            },
        )


def supports(element: str) -> Iterator[Build]:
    """The three launches that find what truncation keeps of a tile."""
    lists = {"LIST": truncation.LIST, "STATE": truncation.STATE}
    settling = {**lists, "MIN_KEY": search.MIN_KEY, "SHORT": truncation.SHORT, "BLOCKS": _BLOCKS}
    parameters, answers = "*i64 *fp64 *fp64", "*i32 *i32 *fp64 *i32"
    groups = -(-_VOCAB // statistics.GROUP_COLUMNS)
    yield Build(
        f"shortlist {element}",
        truncation.shortlist,
        f"*{element} *{element} *i32 *fp32 *fp64 {parameters} *i32 *i64 *i32 *i32 {answers} "
        "i32 i32 i32 i32",
        {
            **settling,
            "SAMPLE": bracket.SAMPLE,
            "BLOCK": support.GATHERED,
            "GROUP": statistics.GROUP_COLUMNS,
            "GROUPS": triton.next_power_of_2(groups),
        },
        warps=support.HOLDING_WARPS,
    )
    yield Build(
        f"sweep {element}",
        truncation.sweep,
        f"*{element} *fp32 *i32 *i64 *i64 *i32 i32 i32",
        {**lists, "BLOCK": rows.BLOCK_COLUMNS},
    )
    yield Build(
        f"settle_support {element}",
        truncation.settle_support,
        f"*{element} *fp32 *fp64 *i64 *fp64 *i32 *i64 *i32 *i64 *i32 {answers} i32 i32 i32",
        {**settling, "BLOCK": search.BLOCK, "PIVOTS": search.PIVOTS},
        warps=support.HOLDING_WARPS,
    )


def linears(element: str, name: str, head: dict[str, bool], architecture: int) -> Iterator[Build]:
    """What goes from states and a head's weight to numbers of rows."""
    size = _BITS[element] // 8
    inner = {"BH": linear_head.inner_columns(size, architecture // 10)}
    if not head["BIASED"]:
        # The reader of a tile that is no longer than one block, which the tiled route launches.
        yield Build(
            f"block_statistics of a block{name}",
            statistics.block_statistics,
            f"*fp32 *fp32 *i64 *fp32 {_PARTIALS} *fp32 *fp32 *fp32 "
            "i32 i32 i32 i32 i32 i32 i32 i32 fp32 fp32",
            {
                "SCALED": head["SCALED"],
                "CAPPED": head["CAPPED"],
                "TEMPERED": True,
                "TARGETED": True,
                "STORED": False,
                "GROUPED": False,
                "COUNTED": False,
                "BLOCK": rows.BLOCK_COLUMNS,
                "GROUP": statistics.GROUP_COLUMNS,
            },
        )
    yield Build(
        f"linear_statistics {element}{name}",
        linear.linear_statistics,
        f"*{element} *{element} *{element} *fp32 *i64 *fp32 {_PARTIALS} "
        "i32 i32 i32 i32 i32 i32 i32 fp32 fp32",
        {
            **head,
            "CHUNK": linear.CHUNK_COLUMNS,
            "BT": linear_head.BT,
            "BV": linear_head.tile_columns(size),
            **inner,
        },
    )
    yield Build(
        f"linear_at {element}{name}",
        linear.linear_at,
        f"*{element} *{element} *{element} *fp32 *i64 *fp32 *fp32 "
        "i32 i32 i32 i32 i32 i32 i32 fp32 fp32",
        {**head, "BT": linear_head.BT, **inner},
    )
    yield Build(
        f"linear_race {element}{name}",
        linear_race.linear_race,
        f"*{element} *{element} *{element} *fp32 *i64 *i64 *i64 *fp32 *fp32 *i32 "
        "i32 i32 i32 i32 i32 i32 fp32 fp32",
        {
            **head,
            "CHUNK": linear.CHUNK_COLUMNS,
            "BT": linear_head.BT,
            "BV": linear_race.RACE_COLUMNS,
            **inner,
        },
    )


def attentions() -> Iterator[Build]:
    """The attention of packed steps, for heads that are 128 wide, and as wide as they get."""
    few, many = attention_work.FEW_QUERIES, attention_work.MANY_QUERIES
    for block, width, asked in ((few, 128, True), (many, 128, False), (many, 256, False)):
        wide = f", {width} wide" if width > 128 else ""
        yield Build(
            f"packed_attention bf16 {block}{', window, soft-cap, sinks' if asked else wide}",
            attention.packed_attention,
            "*bf16 *bf16 *bf16 *bf16 *bf16 *fp32 *i64 *i32 *bf16 *fp32 *fp32 "
            "i32 i32 i32 i32 i32 i32 i32 i32 i32 fp32 fp32 i32 i32",
            {
                "WINDOWED": asked,
                "CAPPED": asked,
                "SINKS": asked,
                "GROUP": 2,
                **attention.tile_of(width, width, 2),
                "UPCAST": False,
                "BM": block,
            },
            warps=attention.WARPS,
            stages=attention.STAGES,
            hot=width == 128,
        )
    for element, width, windowed in (
        ("bf16", 128, False),
        ("bf16", 256, True),
        ("fp32", 128, False),
    ):
        yield Build(
            f"join_parts {element} {width}{', window' if windowed else ''}",
            join_parts.join_parts,
            f"*i64 *fp32 *fp32 *{element} i32 i32",
            {
                "WINDOWED": windowed,
                "GROUP": 2,
                "DV": width,
                "VALUE_WIDTH": width,
                "BM": few,
                "PARTS": join_parts.JOINED,
            },
            warps=4,
        )
    for element in ("bf16", "fp32"):
        yield Build(
            f"write_kv_rows {element}",
            write_kv.write_kv_rows,
            f"*{element} *{element} *{element} *{element} *i64 *i64 i32 i32 i32 i32 i32 i32 i32",
            {
                "D": 128,
                "DV": 128,
                "WIDTH": 128,
                "VALUE_WIDTH": 128,
                "BLOCK": write_kv.BLOCK_TOKENS,
            },
            warps=4,
        )
    # What the probe of every load launches, see `attention_work.work_of`. No request waits for it.
    yield Build(
        f"packed_attention fp32 {few}, the probe's",
        attention.packed_attention,
        "*fp32 *fp32 *fp32 *fp32 *fp32 *fp32 *i64 *i32 *fp32 *fp32 *fp32 "
        "i32 i32 i32 i32 i32 i32 i32 i32 i32 fp32 fp32 i32 i32",
        {
            "WINDOWED": False,
            "CAPPED": False,
            "SINKS": False,
            "GROUP": 2,
            **attention.tile_of(128, 128, 4),
            "UPCAST": False,
            "BM": few,
        },
        warps=attention.WARPS,
        stages=1,
        hot=False,
    )


def bodies(element: str) -> Iterator[Build]:
    """What stands between the products of a layer: hidden sizes of 4,096, heads of 128."""
    wide = {"fp32"} if element == "bf16" else set()  # a residual stream wider than the body
    for stream in sorted({element} | wide):
        for width, added in ((4096, False), (4096, True), (128, False), (rms_norm.WIDEST, True)):
            tile = rms_norm.tile_of(width)
            kind = f"{stream}{'' if stream == element else f' to {element}'}"
            yield Build(
                f"rms_norm_rows {kind} {width}{' added' if added else ''}",
                rms_norm.rms_norm_rows,
                f"*{stream} *{element} *{element} *{stream} *{element} i32 i32 i32 fp32",
                {
                    "ADDED": added,
                    "ROUNDED": True,
                    "OFFSET": False,
                    "INTERPRETED": False,
                    **tile,
                },
                warps=rms_norm.warps_of(tile),
                fusion=False,
            )
    for name, silu in (("silu", True), ("gelu", False)):
        yield Build(
            f"activated_product {element} {name}",
            gated_activation.activated_product,
            f"*{element} *{element} *{element} i32 i32",
            {"SILU": silu, "INTERPRETED": False, "WIDTH": 14_336, "BLOCK": gated_activation.BLOCK},
            warps=gated_activation.WARPS,
            fusion=False,
        )
    yield Build(
        f"rotate_heads {element}",
        rotary.rotate_heads,
        f"{' '.join([f'*{element}'] * 6)} i32 i32 i32 i32 i32 i32 i32 i32",
        {"INTERPRETED": False, **rotary.tile_of(128)},
        warps=rotary.WARPS,
        fusion=False,
    )


def compiled(build: Build, architecture: int) -> Any:
    """What Triton makes of it: `asm` has the code, `metadata` what it takes."""
    names = list(build.kernel.arg_names)
    variables = [name for name in names if name not in build.constants]
    types = dict(zip(variables, build.types.split(), strict=True))
    signature = {name: types.get(name, "constexpr") for name in names}
    # As launches have it: tensors and rows begin at multiples of 16, and sizes are multiples.
    anyhow = {p.name for p in build.kernel.params if p.do_not_specialize_on_alignment}
    aligned = [
        name
        for name, kind in types.items()
        if (kind.startswith("*") and name not in anyhow)
        or name.endswith("stride")
        or name in _MULTIPLES_OF_16
    ]
    source = ASTSource(
        build.kernel,
        signature,
        {(names.index(name),): value for name, value in build.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": build.warps,
            "num_stages": build.stages,
            "enable_fp_fusion": build.fusion,
        },
    )


def compile_for(build: Build, architecture: int) -> tuple[int, int, int]:
    """Registers a thread, bytes of spills, and bytes of shared memory."""
    made = compiled(build, architecture)
    assembler = "ptxas-blackwell" if architecture >= 100 else "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as ptx:
        ptx.write(made.asm["ptx"])
        ptx.flush()
        options = ["-o", "/dev/null", ptx.name]
        said = subprocess.run(
            [_LIBRARY / assembler, "-v", f"-arch={ARCHITECTURES[architecture]}", *options],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    (registers,) = re.findall(r"Used (\d+) registers", said)
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))
    return int(registers), spills, made.metadata.shared


def compile_numbered(number: int, architecture: int) -> tuple[int, int, int]:
    """`compile_for` of one of `builds`, whose kernels other processes cannot be sent."""
    return compile_for(list(builds(architecture))[number], architecture)


def main() -> int:
    """Prints the report; 1 when a hot kernel spills, or one wants too much shared memory."""
    print(f"Triton {triton.__version__}: registers / bytes spilled / bytes of shared memory")
    print(f"{'':50}" + "".join(f"{name:>20}" for name in ARCHITECTURES.values()))
    bad, large = [], []
    with ProcessPoolExecutor(min(_PROCESSES, len(os.sched_getaffinity(0)))) as pool:
        launches = [
            (build, [pool.submit(compile_numbered, number, chip) for chip in ARCHITECTURES])
            for number, build in enumerate(builds(STRICT))
        ]
        for build, compilations in launches:
            line = f"{build.name:50}"
            for architecture, compilation in zip(ARCHITECTURES, compilations, strict=True):
                registers, spills, shared = compilation.result()
                line += f"{f'{registers} / {spills} / {shared}':>20}"
                if spills and build.hot and architecture == STRICT:
                    bad.append(build.name)
                if shared > SHARED_BYTES:
                    large.append(f"{build.name} on sm_{architecture}")
            print(line, flush=True)
    if bad:
        print(f"Hot kernels that spill on sm_{STRICT}: {', '.join(bad)}", file=sys.stderr)
    if large:
        print(f"More shared memory than {SHARED_BYTES}: {', '.join(large)}", file=sys.stderr)
    return 1 if bad or large else 0


if __name__ == "__main__":
    sys.exit(main())
