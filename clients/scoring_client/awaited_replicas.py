"""Waiting for the servers behind a name: they come one after another, and so does their name."""

from contextlib import ExitStack
from time import sleep
from typing import Any

from scoring_client.admin import AdminClient
from scoring_client.connection.retry import MAX_POLL_SECONDS, countdown, growing_pauses
from scoring_client.errors import DeadlineError, NoTlsError, UnavailableError, invalid
from scoring_client.weights.replicas import replica_targets

_SHOWN = 4
"""Servers of which an error tells what they said."""


def wait_for_replicas(
    name: str, count: int = 1, *, timeout: float | None = 600.0, **connection: Any
) -> list[str]:
    """Wait until so many servers behind a name take updates, and return the targets of all that do.

    For the first push to servers that wait for weights, and before every other: addresses are asked
    for anew, and servers that are starting or ending are left out.

    Args:
        name: Host and port, as of ``replica_targets``; nobody need have the name yet.
        count: How many servers at least.
        timeout: Seconds to wait; None = no limit.
        connection: Arguments of AdminClient but the target, with which the servers are asked.

    Returns:
        Targets ``address:port``, each for a client of its own.

    Raises:
        InvalidRequestError: no port, or a count below 1.
        UnavailableError: so many did not come in time; the message has what was said last.
        ScoringError: a server answered something else, such as that it has no AdminService.
    """
    if count < 1:
        raise invalid("count", f"expected 1 or more, got {count}")
    clients: dict[str, AdminClient] = {}
    with ExitStack() as opened:
        for left, pause in countdown(timeout, growing_pauses()):
            others: dict[str, str] = {}
            taking: list[str] = []
            for target in _targets(name, others):
                if target not in clients:
                    clients[target] = opened.enter_context(AdminClient(target, **connection))
                said = _why_not(clients[target], min(left, MAX_POLL_SECONDS))
                if said:
                    others[target] = said
                else:
                    taking.append(target)
            if len(taking) >= count:
                return taking
            sleep(pause)
    shown = "; ".join(f"{who}: {said}" for who, said in list(others.items())[:_SHOWN])
    raise UnavailableError(
        f"{len(taking)} of {count} servers behind {name} took updates within {timeout} s"
        f"{shown and f': {shown}'}"
    )


def _targets(name: str, others: dict[str, str]) -> list[str]:
    try:
        return replica_targets(name)
    except UnavailableError as error:
        others[name] = str(error)
        return []


def _why_not(client: AdminClient, timeout: float) -> str:
    """Return why a server takes no updates now; "" = it does."""
    try:
        taking = client.ask_health(timeout)
    except NoTlsError:
        raise
    except (UnavailableError, DeadlineError) as error:
        return str(error)
    return "" if taking else "it is loading or draining"
