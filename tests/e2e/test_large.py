"""Large requests, large answers, and readers that do not read."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from scoring_client.proto import score_pb2
from tests.e2e.calls import details_of, score_request, stub_of, top_k_request
from tests.e2e.processes import resident
from tests.e2e.served import Served

RANDOM_IDS = np.random.default_rng(0).integers(0, 2048, 4096).tolist()


def test_32_mebibytes_arrive_under_grpcs_default_limit(server: Served) -> None:
    """4,095 rows and the next-token row at K = 1,024."""
    request = top_k_request(RANDOM_IDS[:4095], k=1024)
    request.next_token = True
    with stub_of(server.ready) as stub:
        messages = list(stub.TopKLogprobs(request, timeout=280))
    assert max(message.ByteSize() for message in messages) <= 1.1 * 2**20
    slices = [result for message in messages for result in message.results]
    starts = [piece.score.start for piece in slices]
    ends = [piece.score.start + piece.score.row_count for piece in slices]
    assert starts == [0, *ends[:-1]]
    assert ends[-1] == 4096
    values = np.concatenate(
        [np.frombuffer(p.top_logprobs.data, dtype="<f4").reshape(-1, 1024) for p in slices]
    )
    assert values.nbytes * 2 == 32 << 20
    assert (np.diff(values, axis=1) <= 0).all()
    tails = np.concatenate([piece.log_tail_masses for piece in slices])
    masses = np.exp(values.astype(np.float64)).sum(axis=1) + np.exp(tails)
    np.testing.assert_allclose(masses, 1.0, atol=1e-5)


def test_a_message_of_100_mebibytes_is_refused_and_never_to_be_retried(server: Served) -> None:
    huge = score_pb2.ScoreRequest()
    huge.groups.add().prompt.text = "x" * (100 << 20)
    with stub_of(server.ready, max_send_message_length=-1) as stub:
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Score(huge, timeout=60))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not details_of(refused.value)
        messages = list(stub.Score(score_request([1], [2]), timeout=60))
        assert messages[-1].summary.items_ok == 1


def test_a_reader_that_stalls_costs_a_bounded_amount_of_memory(server: Served) -> None:
    """An answer of 256 MiB that nobody reads; others are served meanwhile; then it is read."""
    with stub_of(server.ready) as warm:
        list(warm.TopKLogprobs(top_k_request(RANDOM_IDS[:1000], k=2048), timeout=280))
    pids = (server.process.pid, server.worker_pid)
    before = sum(map(resident, pids))
    request = top_k_request(RANDOM_IDS[:2000], k=2048, copies=8)
    with stub_of(server.ready) as stalled, stub_of(server.ready) as other:
        call = stalled.TopKLogprobs(request, timeout=290)
        next(call)
        peak = 0
        for _ in range(40):
            messages = list(other.Score(score_request([1], [2] * 200), timeout=120))
            assert messages[-1].summary.items_ok == 1
            peak = max(peak, sum(map(resident, pids)))
        assert peak - before < 150 << 20
        rows = sum(r.score.row_count for message in call for r in message.results)
    assert rows == 8 * 2000
