"""Types of the Kubernetes API as JSON schema, for values that go into manifests as they stand."""

from __future__ import annotations

import functools
import json
import re
from importlib.resources import files
from typing import Any

import kubernetes_validate
from kubernetes_validate.utils import latest_version

PREFIX = "k8s."
"""Before the names of these types in the chart's schema."""

_TYPES = ("api.core.v1", "api.networking.v1", "apimachinery.pkg.apis.meta.v1")
_OTHERS = ("apimachinery.pkg.api.resource", "apimachinery.pkg.util.intstr")


def definitions(schema: Any) -> dict[str, Any]:
    """The types that a schema refers to as `#/$defs/k8s.NAME`, and all that they are made of.

    They are those of the newest version, so that whatever a cluster takes can be given: an older
    one refuses by itself what it does not know. No type takes unknown fields.

    Raises:
        KeyError: there is no such type.
    """
    found: dict[str, Any] = {}
    waiting = sorted(_named(schema))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _bare(_published()[name])
            waiting += sorted(_named(found[name]))
    return {f"{PREFIX}{name}": found[name] for name in sorted(found)}


def _named(schema: Any) -> set[str]:
    return set(re.findall(rf'"#/\$defs/{re.escape(PREFIX)}(\w+)"', json.dumps(schema)))


@functools.cache
def _published() -> dict[str, Any]:
    """Types by their short names."""
    folder = files(kubernetes_validate) / "kubernetes-json-schema"
    path = folder / f"v{latest_version()}-local-strict" / "_definitions.json"
    text = path.read_text()
    return {
        name.rpartition(".")[2]: schema
        for name, schema in json.loads(text)["$defs"].items()
        if name.removeprefix("io.k8s.").rpartition(".")[0] in (*_TYPES, *_OTHERS)
    }


def _bare(schema: Any) -> Any:
    """Without words, and with references to the short names."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    bare = {
        key: _bare(value)
        for key, value in schema.items()
        if key not in ("description", "format", "default", "properties")
        and not key.startswith("x-kubernetes")
    }
    if "$ref" in bare:
        bare["$ref"] = f"#/$defs/{PREFIX}{bare['$ref'].rpartition('.')[2]}"
    if "properties" in schema:  # one of them may be called as a keyword is
        bare["properties"] = {key: _bare(value) for key, value in schema["properties"].items()}
    return bare
