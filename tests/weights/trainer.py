"""A trainer in small: the packaged model, its versions, and what plain torch says of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from scoring_client.proto import admin_pb2, weights_pb2
from scoring_service.models import tiny_model_path

TOLERANCE = 3e-5
"""Nats by which the server's float32 log-probs may differ from plain torch's: the order of sums."""

DTYPES = {
    torch.float32: weights_pb2.WEIGHT_DATA_TYPE_FLOAT32,
    torch.bfloat16: weights_pb2.WEIGHT_DATA_TYPE_BFLOAT16,
    torch.float16: weights_pb2.WEIGHT_DATA_TYPE_FLOAT16,
    torch.int64: weights_pb2.WEIGHT_DATA_TYPE_INT64,
}

State = dict[str, torch.Tensor]


class Trainer:
    """Optimiser steps on the tiny model, every version kept."""

    def __init__(self, version: int = 0) -> None:
        path = str(tiny_model_path())
        self.network: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.version = version
        self.states: dict[int, State] = {version: self.state()}
        self._optimiser = torch.optim.SGD(self.network.parameters(), lr=0.3)
        self._generator = torch.Generator().manual_seed(version)
        self._plain: Any = copy.deepcopy(self.network).eval()
        self._loaded = version

    def state(self) -> State:
        """A copy of the tensors, tied ones once."""
        named = self.network.named_parameters()
        return {name: parameter.detach().clone() for name, parameter in named}

    def step(self) -> int:
        """One optimiser step on random tokens; the new version."""
        ids = torch.randint(2, 2000, (1, 24), generator=self._generator)
        self.network(input_ids=ids, labels=ids).loss.backward()
        # Steps of about the same size: every version differs from every other.
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.version += 1
        self.states[self.version] = self.state()
        return self.version

    def rows(self, version: int, prompt: list[int], completion: list[int]) -> torch.Tensor:
        """float64 [T, V]: log-probs of every row of a completion, by transformers' own forward."""
        if self._loaded != version:
            with torch.no_grad():
                for name, parameter in self._plain.named_parameters():
                    parameter.copy_(self.states[version][name])
            self._loaded = version
        with torch.inference_mode():
            logits = self._plain(input_ids=torch.tensor([prompt + completion])).logits[0]
        return logits[len(prompt) - 1 : -1].double().log_softmax(-1)

    def logprobs(self, version: int, prompt: list[int], completion: list[int]) -> torch.Tensor:
        """float64 [T] of the completion's tokens."""
        rows = self.rows(version, prompt, completion)
        return rows.gather(1, torch.tensor(completion)[:, None])[:, 0]


def chunk(name: str, tensor: torch.Tensor, **changes: Any) -> weights_pb2.WeightChunk:
    """A whole tensor."""
    flat = tensor.contiguous().flatten().view(torch.uint8)
    fields: dict[str, Any] = {
        "name": name,
        "dtype": DTYPES[tensor.dtype],
        "shape": list(tensor.shape),
        "data": flat.numpy().tobytes(),
    }
    return weights_pb2.WeightChunk(**{**fields, **changes})


def pieces(tensor_chunk: weights_pb2.WeightChunk, size: int) -> Iterator[weights_pb2.WeightChunk]:
    """A chunk in pieces of so many bytes, which need not end with an element."""
    for place in range(0, max(1, len(tensor_chunk.data)), size):
        piece = weights_pb2.WeightChunk()
        piece.CopyFrom(tensor_chunk)
        piece.offset, piece.data = place, tensor_chunk.data[place : place + size]
        yield piece


def begin(version: int, **options: Any) -> admin_pb2.PushWeightsRequest:
    """The first message."""
    named = weights_pb2.WeightUpdateOptions(version=version, **options)
    return admin_pb2.PushWeightsRequest(begin=admin_pb2.PushWeightsBegin(options=named))


def part(*chunks: weights_pb2.WeightChunk) -> admin_pb2.PushWeightsRequest:
    """Some tensors."""
    return admin_pb2.PushWeightsRequest(part=admin_pb2.PushWeightsPart(chunks=chunks))


def commit(digest: str = "") -> admin_pb2.PushWeightsRequest:
    """The last message."""
    last = admin_pb2.PushWeightsCommit(weights_digest=digest)
    return admin_pb2.PushWeightsRequest(commit=last)


def messages(
    state: State, version: int, size: int = 100_001, **options: Any
) -> Iterator[admin_pb2.PushWeightsRequest]:
    """A whole stream of weights, in the order of names."""
    yield begin(version, **options)
    for name in sorted(state):
        for piece in pieces(chunk(name, state[name]), size):
            yield part(piece)
    yield commit()
