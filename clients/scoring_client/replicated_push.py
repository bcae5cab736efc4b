"""The same weights to several servers at once."""

from collections.abc import Sequence
from typing import Unpack

from scoring_client.admin import AdminClient
from scoring_client.admin_aio import AsyncAdminClient
from scoring_client.calls.admin import push_defaults
from scoring_client.weights import push as blocking
from scoring_client.weights import push_aio
from scoring_client.weights.given import Weights
from scoring_client.weights.options import PushOptions
from scoring_client.weights.results import WeightUpdate


def push_to_all(
    clients: Sequence[AdminClient],
    weights: Weights,
    *,
    version: int,
    **options: Unpack[PushOptions],
) -> list[WeightUpdate]:
    """Push the same weights to several servers at once, reading each tensor once.

    Nothing is committed anywhere unless every server took every tensor. Commits are not one
    transaction: servers change within milliseconds of one another, each answer names its version,
    and a server that fails at its commit is reported beside those that went on.

    Args:
        clients: One for each server; ``wait_for_replicas`` lists the servers behind a name.
        weights: As of ``AdminClient.push_weights``.
        version: As there.
        options: As there; model and timeout default to the first client's.

    Returns:
        The updates, in the order of ``clients``.

    Raises:
        ReplicaError: some of several servers failed; ``errors`` names them, ``updates`` the others.
        ScoringError: as of ``AdminClient.push_weights``.
    """
    model, filled = push_defaults(clients, options)
    return blocking.push(clients, weights, version, model, filled)


async def async_push_to_all(
    clients: Sequence[AsyncAdminClient],
    weights: Weights,
    *,
    version: int,
    **options: Unpack[PushOptions],
) -> list[WeightUpdate]:
    """Do what ``push_to_all`` does, with asynchronous clients."""
    model, filled = push_defaults(clients, options)
    return await push_aio.push(clients, weights, version, model, filled)
