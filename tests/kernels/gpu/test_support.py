"""Which way a row's support is found by, and that every way finds the reference's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoring_service import peak_memory
from scoring_service.kernels import reference
from scoring_service.kernels.gpu import support, truncation
from scoring_service.kernels.gpu.support import Support
from scoring_service.kernels.gpu.tile import TritonTile
from tests.kernels import cases
from tests.kernels.cases import Setting, promoted
from tests.kernels.gpu.conftest import INTERPRETED
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.refusing import Refusing
from tests.kernels.gpu.support import assert_like_reference, row_parameters

VOCAB = 151_936
DONE, NUCLEUS, TOP, TOTALS, ALONE = range(5)


class Noted:
    """A kernel whose state tensor is copied before each launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.left: list[list[int]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(x: Tensor, max_T: Tensor, state: Tensor, *rest: Any, **options: Any) -> None:
            self.left.append(state[:, 0].tolist())
            self.kernel[grid](x, max_T, state, *rest, **options)

        return launch


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Gets what the first launch leaves of each row to the next ones."""
    noted = Noted(support.sweep)
    monkeypatch.setattr(support, "sweep", noted)
    return noted.left


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the vocabulary for each row that one program searches, in the interpreter."""
    found: list[int] = []
    search_row = truncation.search_row

    def noting(x: Any, keys: Any, vocab: Any, *rest: Any) -> Any:
        found.append(1)
        return search_row(x, keys, vocab, *rest)

    if INTERPRETED:  # what is compiled calls no function of Python
        monkeypatch.setattr(truncation, "search_row", noting)
    return found


def gaussian(spread: float, rows: int = 1, vocab: int = VOCAB) -> Tensor:
    rng = np.random.default_rng(int(spread * 100) + rows)
    values = rng.normal(size=(rows, vocab)) * spread
    return torch.from_numpy(values.astype(np.float32)).to(DEVICE)


@pytest.mark.parametrize(
    ("setting", "spread", "way"),
    [
        (Setting(), 2.0, DONE),
        (Setting(top_k=50), 2.0, DONE),
        (Setting(top_k=1000, min_p=promoted(0.01)), 2.0, DONE),
        (Setting(top_k=50, top_p=promoted(0.9)), 2.0, DONE),
        (Setting(top_p=promoted(0.1)), 2.0, DONE),
        (Setting(min_p=promoted(0.05)), 2.0, DONE),
        (Setting(top_p=promoted(0.9)), 2.0, NUCLEUS),
        (Setting(top_p=promoted(0.9), min_p=promoted(0.001)), 2.0, NUCLEUS),
        (Setting(top_p=promoted(0.99)), 0.1, NUCLEUS),
        (Setting(top_p=promoted(0.5)), 0.1, NUCLEUS),
        (Setting(min_p=promoted(0.01)), 0.5, TOTALS),
        (Setting(top_k=20_000), 2.0, TOP),
        (Setting(top_k=20_000, top_p=promoted(0.9)), 2.0, ALONE),
    ],
)
def test_ways_of_a_real_vocabulary(
    setting: Setting, spread: float, way: int, left: list[list[int]], searched: list[int]
) -> None:
    """Narrow supports are decided by their groups, wide ones by a bracket and one sweep; a single
    program searches no row but those of a nucleus of a wide top-k."""
    assert_like_reference(gaussian(spread), [setting])
    assert left == [[way]]
    assert not INTERPRETED or len(searched) == (way == ALONE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ways_of_logits_full_of_ties(
    dtype: torch.dtype, left: list[list[int]], searched: list[int]
) -> None:
    """At the edge of a nucleus there are a hundred equal ones; of them the highest ids stay."""
    x_T_V = gaussian(2.0).to(dtype)
    parameters = row_parameters([Setting(top_p=promoted(0.9))])
    tile = TritonTile(x_T_V)
    found = tile.support(*parameters)
    want_T_V = reference.support(x_T_V.float(), 0, promoted(0.9), 0.0)
    assert found.sizes_T.tolist() == want_T_V.sum(dim=1).tolist()
    pivot = float(x_T_V.float()[want_T_V].min())
    ties_V = (x_T_V[0].float() == pivot) & want_T_V[0]
    assert found.least_ids_T.item() == int(ties_V.nonzero()[0])
    assert found.least_ids_T.item() > 0
    assert left == [[NUCLEUS]]
    assert searched == []


def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that rows of a thousand tokens go every way there is."""
    monkeypatch.setattr(truncation, "LIST", 128)
    monkeypatch.setattr(truncation, "SHORT", 32)
    monkeypatch.setattr(support, "SAMPLE", 128)


@pytest.mark.parametrize("block", range(6))
def test_every_way_finds_the_references_support(
    block: int, monkeypatch: pytest.MonkeyPatch, left: list[list[int]]
) -> None:
    """On rows of all kinds with parameters of their own, in lists that overflow easily."""
    small_lists(monkeypatch)
    rng = np.random.default_rng(block)
    rows = [cases.random_row(rng, 1000) for _ in range(16)]
    rows += [cases.continuous(rng, 1000) for _ in range(8)]
    x_T_V = torch.from_numpy(np.stack(rows)).to(DEVICE)
    settings = [cases.random_setting(rng, 1000) for _ in range(16)]
    settings += [Setting(top_p=promoted(p)) for p in (0.99, 0.9, 0.5, 0.1)]
    settings += [Setting(top_k=k) for k in (1, 8, 300, 700)]
    assert_like_reference(x_T_V, settings)
    assert {DONE, NUCLEUS, TOP} <= set(left[0])


@pytest.mark.skipif(not INTERPRETED, reason="kernels are exchanged in the interpreter")
@pytest.mark.parametrize("wrong", ["at the bottom", "at the top", "empty", "everything"])
def test_a_wrong_bracket_changes_no_support(
    wrong: str, monkeypatch: pytest.MonkeyPatch, searched: list[int]
) -> None:
    """It is a guess. What it misses, or cannot list, one program searches for."""

    def bracket(x: Any, v: Any, m: Any, w: Any, c: Any, first: Any, top: Any, *_: Any) -> Any:
        ends = {
            "at the bottom": (first, first),
            "at the top": (top, top),
            "empty": (top, top - 1),
            "everything": (first, top),
        }
        return ends[wrong]

    small_lists(monkeypatch)
    monkeypatch.setattr(truncation, "bracket", bracket)
    x_T_V = gaussian(0.5, rows=4, vocab=1000)
    settings = [Setting(top_p=promoted(p)) for p in (0.9, 0.5)]
    settings += [Setting(top_k=400), Setting(top_k=700, min_p=promoted(0.3))]
    assert_like_reference(x_T_V, settings)
    assert len(searched) == 4


@pytest.mark.parametrize("p", [0.5, 0.25, 0.75])
def test_an_edge_that_fp32_cannot_tell_is_swept(p: float, left: list[list[int]]) -> None:
    """1 - p lies exactly on the cumulative mass of equal tokens: one unit decides about one."""
    x_T_V = torch.full((1, 20_000), -60.0, device=DEVICE)
    x_T_V[0, 5000:5800:100] = 1.5  # a group each, so that groups alone might decide
    assert_like_reference(x_T_V, [Setting(top_p=p)])
    assert left == [[NUCLEUS]]


def test_a_row_has_the_bits_that_it_has_alone() -> None:
    """Whichever ways its neighbours go."""
    settings = [
        Setting(), Setting(top_k=50), Setting(top_p=promoted(0.9)), Setting(min_p=promoted(0.02)),
        Setting(top_k=9000), Setting(top_k=9000, top_p=promoted(0.9)),
    ]  # fmt: skip
    x_T_V = gaussian(1.0, rows=len(settings), vocab=20_000)
    together = TritonTile(x_T_V).support(*row_parameters(settings))
    numbers = [field.name for field in fields(Support) if field.name != "lists_T_L"]
    for row, setting in enumerate(settings):
        alone = TritonTile(x_T_V[row : row + 1]).support(*row_parameters([setting]))
        for name in numbers:
            assert getattr(alone, name)[0] == getattr(together, name)[row], f"row {row}: {name}"


def test_a_list_gives_the_token_that_the_row_gives() -> None:
    """Of a listed support the row is not read again, and its stream is the same."""
    settings = [
        Setting(top_k=50), Setting(top_k=300, top_p=promoted(0.99)), Setting(top_p=promoted(0.2)),
        Setting(min_p=promoted(0.05)), Setting(top_k=1), Setting(top_k=30, min_p=promoted(0.3)),
    ] * 4  # fmt: skip
    x_T_V = gaussian(2.0, rows=len(settings), vocab=20_000)
    tile = TritonTile(x_T_V)
    found = tile.support(*row_parameters(settings))
    assert (found.listed_T >= found.sizes_T).all()
    inputs = [3] * len(settings), list(range(len(settings))), [2**32 - 1] * len(settings)
    want_T = tile.draw_from(replace(found, listed_T=torch.full_like(found.listed_T, -1)), *inputs)
    assert len(set(want_T.tolist())) > len(settings) // 2
    x_T_V.fill_(0.0)
    assert torch.equal(tile.draw_from(found, *inputs), want_T)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_no_distribution_keeps_everything(broken: float) -> None:
    """And its neighbour does not mind."""
    x_T_V = gaussian(1.0, rows=2, vocab=1000)
    x_T_V[0] = broken
    settings = [Setting(top_k=5, top_p=promoted(0.5), min_p=promoted(0.1)), Setting(top_k=5)]
    found = TritonTile(x_T_V).support(*row_parameters(settings))
    assert found.log_kept_mass_T[0] == 0.0
    assert found.listed_T[0] == -1
    assert_like_reference(x_T_V[1:], settings[1:])


class Allocated(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made to be filled."""

    bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        # Not what an interpreter copies for itself.
        if function is torch.ops.aten.empty.memory_format:
            self.bytes += made.nbytes
        return made


def test_memory_of_a_search_is_what_admission_counts() -> None:
    rows = 16
    tile = TritonTile(gaussian(1.0, rows=rows, vocab=9000))
    with Allocated() as allocated:
        tile.support(*row_parameters([Setting()] * rows))
    lists = rows * truncation.LIST * 8
    assert lists < allocated.bytes <= rows * peak_memory._SUPPORT_BYTES


def test_supports_and_draws_are_replayed_as_a_graph() -> None:
    """Nothing waits for the host, whichever ways the rows of a replay go: on a GPU a graph shows
    it, elsewhere a mode that refuses what no graph records."""
    settings = [
        Setting(), Setting(top_k=50), Setting(top_p=promoted(0.9)), Setting(top_p=promoted(0.1)),
        Setting(min_p=promoted(0.05)), Setting(top_k=9000, top_p=promoted(0.9)),
    ]  # fmt: skip
    rows = len(settings)
    parameters, inputs_T = row_parameters(settings), torch.arange(rows, device=DEVICE)
    static_T_V = gaussian(2.0, rows=rows, vocab=20_000)

    def drawn() -> Tensor:
        tile = TritonTile(static_T_V)
        return tile.draw_from(tile.support(*parameters), inputs_T, inputs_T, inputs_T)

    if DEVICE.type != "cuda":
        with Refusing():
            drawn()
        return
    drawn()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        recorded_T = drawn()
    for spread in (0.1, 1.0, 2.0):
        static_T_V.copy_(gaussian(spread, rows=rows, vocab=20_000))
        graph.replay()
        assert torch.equal(recorded_T, drawn())
