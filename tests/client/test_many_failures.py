"""Thousands of groups or prompts that failed take as long as thousands that did not."""

import pytest
from google.rpc import status_pb2

from scoring_client.calls.sample_job import sample_job
from scoring_client.calls.score_job import score_job, topk_job
from scoring_client.proto import sample_pb2, score_pb2, topk_pb2

MANY = 500


class LookedAt(dict):
    """Counts the keys that are gone through."""

    count = 0

    def __iter__(self):
        for key in super().__iter__():
            self.count += 1
            yield key


def failed_scores():
    status = status_pb2.Status(code=3, message="no token")
    return [score_pb2.ScoreResult(group_index=g, status=status) for g in reversed(range(MANY))]


def scoring():
    job = score_job("score", [([1], [[2], [3]])] * MANY, {"on_error": "return"}, whole=True)
    return job, score_pb2.ScoreResponse(results=failed_scores())


def listing():
    job = topk_job("score", [([1], [[2], [3]])] * MANY, 5, {"on_error": "return"}, whole=True)
    results = [topk_pb2.TopKResult(score=score) for score in failed_scores()]
    return job, topk_pb2.TopKLogprobsResponse(results=results)


def sampling():
    options = {"max_tokens": 4, "n": 2, "on_error": "return"}
    job = sample_job("sample", [[1]] * MANY, options, whole=True)
    status = status_pb2.Status(code=3, message="no token")
    results = [
        sample_pb2.SampleResult(prompt_index=p, status=status) for p in reversed(range(MANY))
    ]
    return job, sample_pb2.SampleResponse(results=results)


@pytest.mark.parametrize("made", [scoring, listing, sampling])
def test_what_failed_as_a_whole_is_found_without_a_look_at_all_others(made):
    job, message = made()
    job.begin_attempt()
    job._unfinished = unfinished = LookedAt(job._unfinished)
    parts = list(job.feed(message))
    assert job.done
    assert len(parts) == 2 * MANY
    assert all(part.error is not None for part in parts)
    assert unfinished.count <= 2 * MANY
