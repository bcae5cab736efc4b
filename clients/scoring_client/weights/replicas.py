"""Several servers behind one name: each has weights of its own."""

import socket
from collections.abc import Iterable, Mapping, Sequence

from scoring_client.errors import InvalidRequestError, ScoringError, UnavailableError
from scoring_client.weights.results import WeightsInfo, WeightTensor, WeightUpdate


class ReplicaError(ScoringError):
    """A push to several servers did not reach all of them."""

    updates: dict[str, WeightUpdate]
    """Servers that committed, by target: they answer from the new weights."""
    errors: dict[str, ScoringError]
    """Servers that failed, by target. When no server committed, all keep the old weights."""

    def __init__(
        self,
        message: str,
        *,
        updates: Mapping[str, WeightUpdate] | None = None,
        errors: Mapping[str, ScoringError] | None = None,
    ) -> None:
        super().__init__(message)
        self.updates = dict(updates or {})
        self.errors = dict(errors or {})


def replica_error(
    total: int, errors: Mapping[str, ScoringError], updates: Mapping[str, WeightUpdate]
) -> ReplicaError:
    """Return the error that names the servers that failed."""
    said = "; ".join(f"{target}: {error}" for target, error in errors.items())
    state = "the others committed" if updates else "no server changed its weights"
    return ReplicaError(
        f"{len(errors)} of {total} servers failed, {state}: {said}", updates=updates, errors=errors
    )


def replica_targets(name: str) -> list[str]:
    """Return the targets ``address:port`` of every server behind a name with a port.

    Ask again before every push: replicas come and go. With TLS their certificates are for the name,
    so give clients of these targets ``channel_options=[("grpc.ssl_target_name_override", host)]``.

    Args:
        name: Host and port, such as that of a headless service in Kubernetes.

    Raises:
        InvalidRequestError: no port.
        UnavailableError: the name cannot be resolved: nobody has it, or not yet.
    """
    host, colon, port = name.removeprefix("dns:///").rpartition(":")
    if not colon or not port.isdigit():
        raise InvalidRequestError(f"{name!r} has no port")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise UnavailableError(f"{host} cannot be resolved: {error.strerror}") from error
    return targets_of(((family, str(address[0])) for family, _, _, _, address in found), port)


def targets_of(addresses: Iterable[tuple[int, str]], port: str) -> list[str]:
    """Return a target for each server, where servers may have an address of each family."""
    by_family: dict[int, list[str]] = {}
    for family, address in addresses:
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        targets = by_family.setdefault(family, [])
        if target not in targets:
            targets.append(target)
    return max(by_family.values(), key=len, default=[])


def check_one_server(target: str) -> None:
    """Refuse a target that several servers stand behind, since one of them alone would be asked.

    A name that cannot be resolved is left to gRPC, which has words for it.

    Raises:
        InvalidRequestError: it is several.
    """
    scheme, _, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6"):
        servers = rest.split(",")
    else:
        try:
            servers = replica_targets(target)
        except (OSError, ScoringError):
            return
    if len(servers) > 1:
        raise InvalidRequestError(
            f"{target} is {len(servers)} servers ({', '.join(servers[:4])}), each with weights of "
            "its own: give each a client of its own (scoring_client.wait_for_replicas lists them; "
            "push_to_all pushes to all)"
        )


def labels(targets: Sequence[str]) -> list[str]:
    """Return a name for each server: its target, numbered where several have the same."""
    return [
        target if targets.count(target) == 1 else f"{target} ({place})"
        for place, target in enumerate(targets)
    ]


def common_tensors(infos: dict[str, WeightsInfo]) -> Sequence[WeightTensor]:
    """Return the tensors of the model that all servers have.

    Raises:
        InvalidRequestError: they differ, or there is no server.
    """
    if not infos:
        raise InvalidRequestError("there is no server to push to")
    (first, expected), *others = infos.items()
    for target, info in others:
        if info.tensors != expected.tensors:
            raise InvalidRequestError(f"{first} and {target} serve different models")
    return expected.tensors


def raise_failures(
    total: int, errors: dict[str, ScoringError], updates: dict[str, WeightUpdate]
) -> None:
    """Raise what went wrong, if anything did.

    Args:
        total: Servers asked.
        errors: Of those that failed, by name.
        updates: Of those that committed, by name.

    Raises:
        ScoringError: of one server its own error.
        ReplicaError: of several servers, naming those that failed.
    """
    if not errors:
        return
    if total == 1:
        raise next(iter(errors.values()))
    raise replica_error(total, errors, updates)
