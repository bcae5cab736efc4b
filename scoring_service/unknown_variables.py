"""Variables of the environment that look like settings and are none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from scoring_service.config import ENV_PREFIX

_SERVICE_LINK = re.compile(
    r"\w+_SERVICE_HOST|\w+_SERVICE_PORT(_\w+)?|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
_LINKED_PORT = re.compile(r"(tcp|udp|sctp)://.*")
"""Value of NAME_PORT, by which it is told from a setting for a port."""


def warnings_of(environment: Mapping[str, str], known: Collection[str]) -> Iterator[str]:
    """Yields a sentence for each variable with the prefix of settings that nothing reads.

    Kubernetes gives every container variables for each Service of its namespace, which begin so
    where the Service's name does: SCORING_SERVICE_PORT of one called `scoring`. So this cannot be
    an error, and those are passed over. Values are not shown: one may be a secret.

    Args:
        environment: names and values.
        known: names of variables that something reads.
    """
    for name, value in sorted(environment.items()):
        if not name.startswith(ENV_PREFIX) or name in known or _is_service_link(name, value):
            continue
        near = get_close_matches(name, known, n=1, cutoff=0.8)
        hint = f" Did you mean {near[0]}?" if near else ""
        yield f"{name} is no setting and is ignored.{hint}"


def _is_service_link(name: str, value: str) -> bool:
    if name.endswith("_PORT") and _LINKED_PORT.fullmatch(value):
        return True
    return _SERVICE_LINK.fullmatch(name) is not None
