"""A trainer moves the policy while others ask: every answer is of the weights that it names."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from scoring_client import (
    AdminClient,
    PreconditionFailedError,
    ScoringClient,
    UpdateInProgressError,
)
from scoring_service.models import tiny_model_path
from tests.e2e.processes import children, until
from tests.e2e.served import Served, serving

STEPS = 20
FINISHING = range(0, STEPS, 2)
"""Steps whose updates let running samples finish on the weights they began with."""
BOUND = 1e-4
"""Nats: what float32 in another order of operations may differ by."""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving("--num-workers", "2", "--dtype", "float32") as running:
        assert running.ready
        yield running


@pytest.fixture
def admin(server: Served) -> Iterator[AdminClient]:
    with AdminClient(server.ready) as client:
        yield client


def trained_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)


@dataclass
class Answer:
    """Tokens after a prompt, and their log-probs under the versions that it names."""

    prompt: list[int]
    tokens: list[int]
    logprobs: np.ndarray
    spans: list[tuple[int, int]]
    """(first token, version)."""


@dataclass
class Traffic:
    """Others, who ask all the time; what they got, and what went wrong."""

    target: str
    answers: list[Answer] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        for seed, ask in enumerate((self._score, self._score, self._sample)):
            thread = threading.Thread(target=self._run, args=(ask, seed))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, ask: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            with ScoringClient(self.target) as client:
                while not self._stop.is_set():
                    self.answers.extend(ask(client, rng))
                    self._stop.wait(0.05)
        except BaseException as error:  # noqa: BLE001 - the test fails on it
            self.errors.append(error)

    def _score(self, client: ScoringClient, rng: np.random.Generator) -> Iterator[Answer]:
        prompt = rng.integers(3, 1000, 12).tolist()
        completions = [rng.integers(3, 1000, n).tolist() for n in (5, 9)]
        for tokens, scores in zip(
            completions, client.score([(prompt, completions)])[0], strict=True
        ):
            yield Answer(prompt, tokens, scores.logprobs, [(0, scores.weight_version)])

    def _sample(self, client: ScoringClient, rng: np.random.Generator) -> Iterator[Answer]:
        prompt = rng.integers(3, 1000, 8).tolist()
        for sample in client.sample([prompt], n=2, max_tokens=48, ignore_eos=True).samples():
            spans = [(span.first_token, span.weight_version) for span in sample.weight_spans]
            yield Answer(prompt, sample.token_ids.tolist(), sample.logprobs, spans)


def train(model: Any, optimizer: Any, seed: int) -> None:
    """A step of cross-entropy that moves log-probs by much more than BOUND."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(3, 1000, (2, 16)))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def copy_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def largest_difference(answers: list[Answer], versions: dict[int, Any], shift: int = 0) -> float:
    """Between what answers say and plain transformers with the version each token names."""
    model = trained_model().eval()
    worst = 0.0
    named = sorted({version for answer in answers for _, version in answer.spans})
    for version in named:
        model.load_state_dict(versions[version + shift])
        of_it = [a for a in answers if version in (of for _, of in a.spans)]
        for answer, truth in zip(of_it, references(model, of_it), strict=True):
            bounds = [first for first, _ in answer.spans[1:]] + [len(answer.tokens)]
            for (first, of), end in zip(answer.spans, bounds, strict=True):
                if of == version:
                    error = np.abs(answer.logprobs[first:end] - truth[first:end]).max()
                    worst = max(worst, float(error))
    return worst


@torch.no_grad()
def references(model: Any, answers: list[Answer]) -> list[np.ndarray]:
    """Log-probs of each answer's tokens, those of equal lengths in one batch."""
    found: dict[int, np.ndarray] = {}
    alike: dict[tuple[int, int], list[int]] = {}
    for place, answer in enumerate(answers):
        alike.setdefault((len(answer.prompt), len(answer.tokens)), []).append(place)
    for (prompt, _), places in alike.items():
        ids = torch.tensor([answers[place].prompt + answers[place].tokens for place in places])
        rows = model(input_ids=ids).logits[:, prompt - 1 : -1].log_softmax(-1)
        of_tokens = rows.gather(2, ids[:, prompt:, None])[:, :, 0].numpy()
        found.update(zip(places, of_tokens, strict=True))
    return [found[place] for place in range(len(answers))]


def test_every_answer_is_of_exactly_the_weights_it_names(
    server: Served, admin: AdminClient
) -> None:
    model = trained_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    start = admin.get_weights().version
    admin.push_weights(model, version=start + 1)
    versions = {start + 1: copy_of(model)}

    def mixed() -> list[Answer]:
        return [answer for answer in traffic.answers if len(answer.spans) > 1]

    with Traffic(server.ready) as traffic:
        for step in itertools.count():
            # On slow machines a few samples see all the steps, and each may be one that finishes.
            if step >= STEPS and (mixed() or traffic.errors):
                break
            train(model, optimizer, step)
            version = start + 2 + step
            # Before the push: an answer may name it as soon as it is committed.
            versions[version] = copy_of(model)
            running: Any = "finish" if step in FINISHING else "continue"
            admin.push_weights(model, version=version, running_samples=running)
        until(lambda: any(a.spans[-1][1] == version for a in traffic.answers) or traffic.errors)
    assert traffic.errors == []
    named = {version for answer in traffic.answers for _, version in answer.spans}
    assert len(named) > STEPS / 2
    assert largest_difference(traffic.answers, versions) < BOUND
    # The bound tells neighbouring versions apart.
    older = [a for a in traffic.answers if a.spans[-1][1] != version]
    assert largest_difference(older, versions, shift=1) > 20 * BOUND
    # Those that finish never pass into a version whose update said so.
    finishing = {start + 2 + step for step in FINISHING}
    assert mixed()
    assert not any(of in finishing for answer in mixed() for _, of in answer.spans[1:])


HALFWAY = """
import sys, time
from scoring_client import AdminClient
from tests.e2e.test_live_weights import trained_model

def tensors():
    for place, (name, tensor) in enumerate(trained_model().state_dict().items()):
        if place == 8:
            print("halfway", flush=True)
            time.sleep(60)
        yield name, tensor * 2

with AdminClient(sys.argv[1]) as admin:
    # Small messages, so that a part is with the server when the trainer stops.
    import scoring_client.weights.messages as messages
    messages.part_messages.__kwdefaults__["chunk_bytes"] = 4096
    admin.push_weights(tensors(), version=1_000_000)
"""


@pytest.fixture
def stalled_trainer(server: Served) -> Iterator[subprocess.Popen[str]]:
    """A trainer that has sent a part of its weights and then nothing."""
    command = [sys.executable, "-c", HALFWAY, server.ready]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "halfway\n"
        yield trainer
    finally:
        trainer.kill()
        trainer.wait()


def bits(target: str) -> bytes:
    with ScoringClient(target) as client:
        return client.score([([5, 6, 7], [[8, 9, 10, 11]])])[0][0].logprobs.tobytes()


def test_a_second_trainer_is_refused_and_a_dead_one_leaves_nothing(
    server: Served, admin: AdminClient, stalled_trainer: subprocess.Popen[str]
) -> None:
    before, bits_before = admin.get_weights(), bits(server.ready)
    assert before.update is not None
    assert before.update.bytes_received > 0
    with pytest.raises(UpdateInProgressError):
        admin.push_weights(trained_model(), version=before.version + 1)
    stalled_trainer.send_signal(signal.SIGKILL)
    until(lambda: admin.get_weights().update is None)
    after = admin.get_weights()
    assert (after.version, after.weights_digest) == (before.version, before.weights_digest)
    assert after.last_update is not None
    assert after.last_update.phase == "aborted"
    assert bits(server.ready) == bits_before
    admin.push_weights(trained_model(), version=before.version + 1)
    assert admin.get_weights().version == before.version + 1


def test_a_worker_killed_in_the_middle_comes_back_with_what_is_committed(
    server: Served, admin: AdminClient
) -> None:
    model = trained_model()
    start = admin.get_weights().version
    admin.push_weights(model, version=start + 1)
    versions = {start + 1: copy_of(model)}
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    versions[start + 2] = copy_of(model)
    workers = sorted(children(server.process.pid))

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for place, pair in enumerate(model.state_dict().items()):
            if place == 8:
                os.kill(workers[0], signal.SIGKILL)
            yield pair

    with Traffic(server.ready) as traffic:
        until(lambda: len(traffic.answers) > 10 or bool(traffic.errors))
        # The other worker goes on with the update.
        assert admin.push_weights(tensors(), version=start + 2).phase == "committed"
        until(lambda: workers[0] not in children(server.process.pid))
        until(lambda: len(children(server.process.pid)) == 2)
        asked = len(traffic.answers)
        until(lambda: len(traffic.answers) > asked + 60 or bool(traffic.errors))
    # Not one call failed, those that the dead worker had begun included.
    assert traffic.errors == []
    named = [of for answer in traffic.answers for _, of in answer.spans]
    assert set(named) == set(versions)
    # Whatever began after the commit, on either worker.
    assert {of for answer in traffic.answers[asked + 12 :] for _, of in answer.spans} == {start + 2}
    assert largest_difference(traffic.answers, versions) < BOUND


def test_back_to_the_first_weights_everything_is_the_same_again(
    server: Served, admin: AdminClient
) -> None:
    first = trained_model()
    other = {name: tensor * 1.25 for name, tensor in first.state_dict().items()}
    version = admin.get_weights().version
    one = admin.push_weights(first, version=version + 1, digest=True)
    bits_of_one = bits(server.ready)
    two = admin.push_weights(other, version=version + 2, digest=True)
    assert two.weights_digest != one.weights_digest
    assert bits(server.ready) != bits_of_one
    again = admin.push_weights(first, version=version + 1, allow_older_version=True, digest=True)
    assert (again.weights_digest, again.version) == (one.weights_digest, one.version)
    assert bits(server.ready) == bits_of_one


def test_what_the_server_refuses_leaves_the_old_weights(server: Served, admin: AdminClient) -> None:
    before, bits_before = admin.get_weights(), bits(server.ready)
    other = {name: tensor * 2 for name, tensor in trained_model().state_dict().items()}
    for options, reason in (
        ({"version": before.version}, "WEIGHT_VERSION_NOT_NEWER"),
        ({"version": before.version + 9, "base_version": 77}, "WEIGHT_VERSION_MISMATCH"),
        ({"version": before.version + 9, "weights_digest": "0" * 64}, "WEIGHTS_DIGEST_MISMATCH"),
    ):
        with pytest.raises(PreconditionFailedError) as caught:
            admin.push_weights(other, **options)
        assert caught.value.reason == reason
        assert admin.get_weights().version == before.version
        assert bits(server.ready) == bits_before
