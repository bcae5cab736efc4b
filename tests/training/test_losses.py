"""Distillation losses against float64 autograd on full distributions."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_client import Completion, ScoringClient, divergences
from scoring_client.losses import (
    TeacherRows,
    forward_kl,
    generalized_js,
    reverse_kl,
    soft_cross_entropy,
    teacher_rows,
)
from tests.client.toy_server import ToyServer
from tests.training.distillation import Divergence, js, kl, pair, reverse, teacher_of, truth

Loss = Callable[..., Tensor]

LOSSES: list[tuple[Loss, Divergence]] = [
    (forward_kl, kl),
    (reverse_kl, reverse),
    (generalized_js, js(0.5)),
    (lambda x, t, **o: generalized_js(x, t, 0.1, **o), js(0.1)),
    (lambda x, t, **o: generalized_js(x, t, 0.9, **o), js(0.9)),
]
NAMES = ["forward", "reverse", "js half", "js 0.1", "js 0.9"]
every_loss = pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=NAMES)
every_loss_and_its_truth = pytest.mark.parametrize(("loss", "divergence"), LOSSES, ids=NAMES)


def assert_same(ours: Tensor, expected: Tensor, logits: Tensor) -> None:
    """The values of each row and the gradients of a weighted sum."""
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    weights = torch.arange(1.0, len(ours) + 1, dtype=torch.float64)
    got = torch.autograd.grad((ours * weights).sum(), logits, retain_graph=True)
    wanted = torch.autograd.grad((expected * weights).sum(), logits, retain_graph=True)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@every_loss_and_its_truth
@pytest.mark.parametrize("k", [1, 5, 29, 30])
def test_on_a_list_and_its_tail(loss: Loss, divergence: Divergence, k: int) -> None:
    """At k = 30 this is the divergence over the whole vocabulary."""
    teacher_N_V, logits = pair()
    teacher = teacher_of(teacher_N_V, k)
    expected = truth(divergence, teacher_N_V, logits, teacher.token_ids.tolist())
    assert_same(loss(logits, teacher, reduction="none"), expected, logits)
    full = truth(divergence, teacher_N_V, logits, [list(range(30))] * 6)
    if k < 29:
        assert (expected < full).all(), "merging events loses divergence"
    else:
        torch.testing.assert_close(expected, full)


@every_loss_and_its_truth
def test_inside_autocast(loss: Loss, divergence: Divergence) -> None:
    """The same values and gradients: nothing of a loss is rounded to half precision."""
    teacher_N_V, logits = pair()
    narrow, teacher = logits.detach().float().requires_grad_(), teacher_of(teacher_N_V, 5)
    expected = truth(divergence, teacher_N_V, logits, teacher.token_ids.tolist())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = loss(narrow, teacher, reduction="none", chunk_rows=4)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)
    (got,) = torch.autograd.grad(ours.sum(), narrow)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)


@every_loss_and_its_truth
def test_on_the_union_of_two_lists(loss: Loss, divergence: Divergence) -> None:
    """The student's own top-C beside the teacher's top-K, overlaps, repetitions and -1 included."""
    teacher_N_V, logits = pair(seed=1)
    candidates = logits.detach().topk(6, dim=1).indices
    candidates[0, 2] = -1
    candidates[1, 3] = candidates[1, 0]
    teacher = teacher_of(teacher_N_V, 7, candidates)
    listed = [
        list(dict.fromkeys(own + [c for c in other if c >= 0]))
        for own, other in zip(teacher.token_ids.tolist(), candidates.tolist(), strict=True)
    ]
    assert len({len(ids) for ids in listed}) > 2
    expected = truth(divergence, teacher_N_V, logits, listed)
    assert_same(loss(logits, teacher, reduction="none"), expected, logits)


@every_loss_and_its_truth
def test_without_the_tail(loss: Loss, divergence: Divergence) -> None:
    teacher_N_V, logits = pair(seed=2)
    teacher = replace(teacher_of(teacher_N_V, 8), log_tail_masses=None)
    p = teacher.logprobs.exp()
    q = logits.softmax(1).gather(1, teacher.token_ids)
    scaled = zip(p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True), strict=True)
    expected = torch.stack([divergence(*row) for row in scaled])
    assert_same(loss(logits, teacher, tail="renormalize", reduction="none"), expected, logits)
    bare = torch.stack([divergence(*row) for row in zip(p, q, strict=True)])
    assert_same(loss(logits, teacher, tail="drop", reduction="none"), bare, logits)


@every_loss
def test_gradcheck(loss: Loss) -> None:
    teacher_N_V, logits = pair(rows=3, vocab=12, seed=3)
    candidates = logits.detach().topk(4, dim=1).indices
    teacher = teacher_of(teacher_N_V, 4, candidates)
    for tail in ("bucket", "renormalize", "drop"):
        assert torch.autograd.gradcheck(lambda x, t=tail: loss(x, teacher, tail=t), logits)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_equal_distributions_are_exactly_zero_apart(loss: Loss, dtype: torch.dtype, k: int) -> None:
    """Exactly, where the log-masses are equal: and with the bits of log-softmax they are."""
    logits = torch.randn(9, 50, dtype=dtype, generator=torch.Generator().manual_seed(k))
    below = logits - logits.amax(dim=1, keepdim=True)
    log_z = below.logsumexp(1, keepdim=True)
    top = below.topk(k, dim=1)
    rest = below.scatter(1, top.indices, -math.inf).logsumexp(1) - log_z[:, 0]
    teacher = TeacherRows(token_ids=top.indices, logprobs=top.values - log_z, log_tail_masses=rest)
    logits.requires_grad_(True)
    values = loss(logits, teacher, reduction="none")
    assert torch.equal(values, torch.zeros_like(values))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert gradient.abs().max() < 1e-6


def test_the_divergences_are_not_symmetric_where_they_say_so() -> None:
    teacher_N_V, logits = pair(rows=4, seed=5)
    teacher = teacher_of(teacher_N_V, 30)
    student = teacher_of(logits.detach().log_softmax(1), 30)
    for loss in (forward_kl, reverse_kl, lambda x, t: generalized_js(x, t, 0.2)):
        assert not torch.isclose(loss(logits, teacher), loss(teacher_N_V, student), rtol=1e-3)
    torch.testing.assert_close(reverse_kl(logits, teacher), forward_kl(teacher_N_V, student))


def test_the_floor_of_other_trainers() -> None:
    """Two lists, each with a floor where it lacks a token of the other, and no tail."""
    teacher_N_V, logits = pair(seed=7)
    own = logits.detach().topk(5, dim=1).indices
    teacher = teacher_of(teacher_N_V, 5, own)
    q_N_V = logits.log_softmax(1)
    rows = []
    for n in range(6):
        theirs, mine = teacher.token_ids[n].tolist(), own[n].tolist()
        ids = sorted({*theirs, *mine})
        floor = torch.tensor(-20.0, dtype=torch.float64)
        p = torch.stack([teacher_N_V[n, i] if i in theirs else floor for i in ids]).exp()
        q = torch.stack([q_N_V[n, i] if i in mine else floor for i in ids]).exp()
        rows.append(js(0.3)(p, q))
    ours = generalized_js(logits, teacher, 0.3, floor=-20.0, reduction="none")
    assert_same(ours, torch.stack(rows), logits)
    with pytest.raises(ValueError, match="floor needs the student's list"):
        generalized_js(logits, teacher_of(teacher_N_V, 5), floor=-20.0)


def test_impossible_tokens() -> None:
    """No NaN, and infinite only where that is the truth."""
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64).log()
    logits = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    teacher = TeacherRows(
        token_ids=torch.tensor([[0, 1, 2]]), logprobs=p[:, :3], log_tail_masses=p[:, 3]
    )
    q = logits.softmax(1)
    assert_same(
        forward_kl(logits, teacher, reduction="none"),
        (p.exp()[:, :2] * (p[:, :2] - q[:, :2].log())).sum(1),
        logits,
    )
    m = 0.5 * (p.exp() + q)
    listed = js(0.5)(p.exp()[0, :2], q[0, :2]) - 0  # the tokens both have
    alone = 0.5 * (q[0, 2:] * (q[0, 2:] / m[0, 2:]).log()).sum()
    # The two events that only the student has: token 2 and the tail, token 3.
    assert_same(generalized_js(logits, teacher, reduction="none"), (listed + alone)[None], logits)
    assert reverse_kl(logits, teacher) == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_faintest_mass_on_what_is_impossible_is_infinitely_far(dtype: torch.dtype) -> None:
    """Also where exp() of its logarithm is 0: the twins say the same."""
    logits = torch.tensor([[0.0, 0.0, -900.0]], dtype=dtype, requires_grad=True)
    p = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]], dtype=dtype)
    teacher = TeacherRows(token_ids=torch.tensor([[0, 1, 2]]), logprobs=p)
    found = reverse_kl(logits, teacher, tail="drop")
    assert found == math.inf
    found.backward()
    assert torch.isfinite(logits.grad).all()
    log_q = logits.detach().double().log_softmax(1).numpy()
    assert divergences.reverse_kl(p.double().numpy(), log_q) == math.inf


@every_loss
def test_a_student_whose_mass_is_all_on_the_list(loss: Loss) -> None:
    """As after a truncation of its logits: the tail is empty, and sends no NaN backwards."""
    teacher_N_V, logits = pair(seed=12)
    ids = torch.arange(5).repeat(len(logits), 1)
    outside = torch.arange(logits.shape[1]) >= 5
    kept = logits.detach().masked_fill(outside, -math.inf).requires_grad_()
    teacher = TeacherRows(
        token_ids=ids,
        logprobs=teacher_N_V[:, :5],
        log_tail_masses=teacher_N_V[:, 5:].logsumexp(1),
    )
    found = loss(kept, teacher, reduction="none")
    assert ((found == math.inf) | torch.isfinite(found)).all()
    assert (found == math.inf).all() == (loss is forward_kl)
    found.sum().backward()
    assert torch.isfinite(kept.grad).all()
    # A large negative logit has no mass in float64 either, and a gradient that is known.
    limit = logits.detach().masked_fill(outside, -1e4).requires_grad_()
    if loss is not forward_kl:
        loss(limit, teacher, reduction="sum").backward()
        torch.testing.assert_close(kept.grad, limit.grad)


@every_loss
def test_mask_and_reductions(loss: Loss) -> None:
    teacher_N_V, logits = pair(seed=9)
    teacher = teacher_of(teacher_N_V, 5)
    each = loss(logits, teacher, reduction="none")
    mask = torch.tensor([1, 0, 1, 1, 0, 0])
    with torch.no_grad():
        # What is masked may hold anything.
        poisoned = logits.clone()
        poisoned[1] = math.nan
        poisoned[4] = -math.inf
    poisoned.requires_grad_(True)
    kept = each[[0, 2, 3]]
    total = loss(poisoned, teacher, mask=mask, reduction="sum")
    torch.testing.assert_close(total, kept.sum())
    (gradient,) = torch.autograd.grad(total, poisoned)
    assert torch.isfinite(gradient).all()
    assert (gradient[[1, 4, 5]] == 0).all()
    torch.testing.assert_close(loss(poisoned, teacher, mask=mask.bool()), kept.mean())
    rows = loss(poisoned, teacher, mask=mask, reduction="none")
    torch.testing.assert_close(rows[[0, 2, 3]], kept)
    assert (rows[[1, 4, 5]] == 0).all()
    nothing = loss(logits, teacher, mask=torch.zeros(6))
    assert nothing == 0
    nothing.backward()


@every_loss
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_masked_row_may_have_any_teacher_and_temperature(
    loss: Loss, chunk_rows: int | None
) -> None:
    """Padding: ids past the vocabulary, numbers that are none, temperature 0."""
    teacher_N_V, logits = pair(seed=9)
    teacher = teacher_of(teacher_N_V, 5, logits.detach().topk(4, dim=1).indices)
    mask = torch.tensor([1, 0, 1, 1, 0, 0])
    expected = loss(logits[mask.bool()], rows_of(teacher, mask.bool()))
    padding, temperature = mask == 0, torch.where(mask == 0, 0.0, 1.0)
    for ids in (teacher.token_ids, teacher.candidate_ids):
        ids[padding] = 10**9
    for numbers in (teacher.logprobs, teacher.log_tail_masses, teacher.candidate_logprobs):
        numbers[padding] = math.nan
    options = {"mask": mask, "temperature": temperature, "chunk_rows": chunk_rows}
    ours = loss(logits, teacher, **options)
    assert_same(ours[None], expected[None], logits)
    temperature[0] = 0.0
    with pytest.raises(ValueError, match="temperature must be above 0"):
        loss(logits, teacher, **options)
    temperature[0] = 1.0
    teacher.token_ids[2, 1] = 31
    with pytest.raises(ValueError, match="the teacher lists id 31, the student has 30"):
        loss(logits, teacher, **options)


def rows_of(teacher: TeacherRows, kept: Tensor) -> TeacherRows:
    tensors = {name: getattr(teacher, name) for name in TeacherRows.__slots__}
    return TeacherRows(**{n: None if t is None else t[kept] for n, t in tensors.items()})


@every_loss
def test_chunks_temperature_and_half_precision(loss: Loss) -> None:
    teacher_N_V, logits = pair(seed=10)
    candidates = logits.detach().topk(4, dim=1).indices
    tempered = (teacher_N_V / 0.75).log_softmax(1)
    teacher = teacher_of(tempered, 5, candidates)
    by_hand = loss(logits / 0.75, teacher, reduction="none")
    ours = loss(logits, teacher, temperature=0.75, chunk_rows=4, reduction="none")
    assert_same(ours, by_hand, logits)
    mixed = torch.full((6,), 0.75, dtype=torch.float64)
    torch.testing.assert_close(loss(logits, teacher, temperature=mixed), by_hand.mean())
    half = logits.detach().bfloat16()
    value = loss(half, teacher, temperature=0.75)
    assert value.dtype == torch.float32
    expected = loss(half.double(), teacher, temperature=0.75)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_failed_completion_is_named_with_its_group() -> None:
    groups = [([1], [[2]]), ([1], [[2], [99_999]])]
    with ToyServer() as server, ScoringClient(server.target) as client:
        scores = client.topk_logprobs(groups, 2, on_error="return").completions()
    with pytest.raises(ValueError, match=r"^groups\[1\]\.completions\[1\] failed: "):
        teacher_rows(scores)


def test_a_teacher_without_a_list_is_told_what_to_ask() -> None:
    with ToyServer() as server, ScoringClient(server.target) as client:
        scores = client.score([([1], [[2]])]).completions()
    with pytest.raises(ValueError, match=r"^groups\[0\]\.completions\[0\] has no list: ask topk_"):
        teacher_rows(scores)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no completion is there"):
        teacher_rows([])


def test_what_is_no_teacher_is_told_what_to_give() -> None:
    with ToyServer() as server, ScoringClient(server.target) as client:
        results = client.topk_logprobs([([1], [[2]])], 3)
    (scores,) = results.completions()
    for given, kind in ((results, "ScoreResults"), (scores, "CompletionTopK")):
        with pytest.raises(ValueError, match=rf"results\.completions\(\).*, got {kind}$"):
            teacher_rows(given)  # type: ignore[arg-type]
    logits = torch.zeros(1, 258)
    for loss in (forward_kl, reverse_kl, generalized_js):
        with pytest.raises(ValueError, match=r"teacher_rows\(results.completions\(\)\), got tuple"):
            loss(logits, (scores,))  # type: ignore[arg-type]
    assert forward_kl(logits, teacher_rows([scores])).isfinite()


def test_arrays_of_results_are_as_good_as_tensors() -> None:
    with ToyServer() as server, ScoringClient(server.target) as client:
        (scores,) = client.topk_logprobs([([1], [[2, 3, 4]])], 5).completions()
    logits = torch.randn(3, 258, generator=torch.Generator().manual_seed(0))
    teacher, mask = teacher_rows([scores]), np.array([True, False, True])
    assert torch.equal(
        forward_kl(logits, teacher, mask=mask),
        forward_kl(logits, teacher, mask=torch.from_numpy(mask)),
    )
    weights = np.exp(scores.top_logprobs)
    soft = soft_cross_entropy(logits, scores.top_token_ids, weights)
    targets = torch.from_numpy(scores.top_token_ids).long()
    assert torch.equal(soft, soft_cross_entropy(logits, targets, torch.from_numpy(weights)))
    hard = soft_cross_entropy(logits, scores.token_ids)
    labels = torch.from_numpy(scores.token_ids).long()
    torch.testing.assert_close(hard, torch.nn.functional.cross_entropy(logits, labels))
    with pytest.raises(ValueError, match="mask must be a tensor or a numpy array, got list"):
        forward_kl(logits, teacher, mask=[1, 0, 1])  # type: ignore[arg-type]


def test_what_makes_no_sense_is_refused() -> None:
    teacher_N_V, logits = pair()
    teacher = teacher_of(teacher_N_V, 5)
    refused = [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": math.inf}, "temperature must be above 0 and finite, got inf"),
        ({"temperature": math.nan}, "temperature must be above 0 and finite, got nan"),
        ({"tail": "none"}, "tail must be"),
        ({"reduction": "batchmean"}, "reduction must be"),
        ({"mask": torch.ones(5)}, r"the mask has shape \[5\], expected \[6\]"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            forward_kl(logits, teacher, **options)
    for loss in (forward_kl, reverse_kl, generalized_js):
        with pytest.raises(TypeError, match=rf"{loss.__name__}\(\) got an unexpected .* 'maks'"):
            loss(logits, teacher, maks=None)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="the teacher has 6 rows, the logits 5"):
        forward_kl(logits[:5], teacher)
    with pytest.raises(ValueError, match="ask with token_id_limit=20"):
        forward_kl(logits[:, :20], teacher_of(teacher_N_V, 30))
    with pytest.raises(ValueError, match="needs log_tail_masses"):
        forward_kl(logits, replace(teacher, log_tail_masses=None))
    with pytest.raises(ValueError, match=r"logits must be \[N, V\]"):
        forward_kl(logits.reshape(2, 3, 30), teacher_of(teacher_N_V[:2], 5))
    ids, logprobs = teacher.token_ids, teacher.logprobs
    with pytest.raises(ValueError, match=r"must both be \[N, K\]"):
        TeacherRows(token_ids=ids, logprobs=logprobs[:, :3])
    with pytest.raises(ValueError, match="go together"):
        TeacherRows(token_ids=ids, logprobs=logprobs, candidate_ids=ids)
    with pytest.raises(ValueError, match=r"must both be \[6, C\]"):
        TeacherRows(
            token_ids=ids, logprobs=logprobs, candidate_ids=ids[:2], candidate_logprobs=logprobs[:2]
        )
    with pytest.raises(ValueError, match=r"log_tail_masses must be \[6\]"):
        TeacherRows(token_ids=ids, logprobs=logprobs, log_tail_masses=logprobs[:2, 0])


@pytest.mark.parametrize("level", [-100.0, 20.0])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_a_student_that_is_its_teacher_far_from_zero(level: float, temperature: float) -> None:
    """The teacher's numbers are the server's: in float32 as it sends them, of the same logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 2000, generator=generator) * 3 * temperature + level
    x_N_V = (logits / torch.tensor(temperature)).double()
    logprobs_N_V = x_N_V.log_softmax(dim=1)
    listed = logprobs_N_V.topk(20)
    rest = logprobs_N_V.scatter(1, listed.indices, -math.inf).logsumexp(dim=1)
    teacher = TeacherRows(
        token_ids=listed.indices, logprobs=listed.values.float(), log_tail_masses=rest.float()
    )
    for loss in (forward_kl, reverse_kl, generalized_js):
        values = loss(logits, teacher, temperature=temperature, reduction="none")
        assert values.abs().max().item() < 2e-6


@pytest.fixture
def every_warning_raises() -> Iterator[None]:
    """Torch tells most things once a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(before)


def test_results_of_an_object_store_are_taken_without_a_warning(
    every_warning_raises: None,
) -> None:
    """Ray keeps arrays apart from the rest of a pickle, and gives views that are read-only."""
    asked = Completion([2, 3, 4], candidates=np.arange(6, dtype=np.int32).reshape(3, 2))
    with ToyServer() as server, ScoringClient(server.target) as client:
        results = client.topk_logprobs([([1], [asked])], 5)
    buffers: list[pickle.PickleBuffer] = []
    stored = pickle.dumps((results, asked), protocol=5, buffer_callback=buffers.append)
    results, asked = pickle.loads(stored, buffers=[bytes(part.raw()) for part in buffers])
    (scores,) = results.completions()
    assert not scores.logprobs.flags.writeable
    logits = torch.randn(3, 258, generator=torch.Generator().manual_seed(0))
    teacher = teacher_rows([scores], [asked.candidates])
    assert teacher.candidate_ids.tolist() == [[0, 1], [2, 3], [4, 5]]
    hard = soft_cross_entropy(logits, scores.token_ids)
    labels = torch.tensor([2, 3, 4])
    torch.testing.assert_close(hard, torch.nn.functional.cross_entropy(logits, labels))
