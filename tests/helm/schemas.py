"""Manifests against the schemas of Kubernetes, strictly: an unknown field is an error.

`kubernetes_validate` brings the schemas. Its own function reads megabytes for each manifest and
version; here each is read once. The schemas of custom resources, in `crds/`, hold what the chart
uses of them, as their projects publish it.
"""

from __future__ import annotations

import functools
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate.utils import all_versions
from referencing import Registry, Resource

_CRDS = Path(__file__).parent / "crds"
_FOLDERS = files(kubernetes_validate) / "kubernetes-json-schema"

VERSIONS = [
    version for version in dict.fromkeys(all_versions()) if int(version.split(".")[1]) >= 29
]


@functools.cache
def _registry(version: str) -> Registry:
    text = (_FOLDERS / f"v{version}-local-strict" / "_definitions.json").read_text()
    # Under the name by which the schemas refer to it; crawled here, else each manifest would do so.
    definitions = Resource.from_contents(json.loads(text))
    return Registry().with_resource("_definitions.json", definitions).crawl()


@functools.cache
def _validator(version: str, kind: str, api_version: str) -> Any:
    custom = _CRDS / f"{kind.lower()}.json"
    if custom.exists():
        return jsonschema.Draft202012Validator(json.loads(custom.read_text()))
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = _FOLDERS / f"v{version}-local-strict" / f"{kind.lower()}-{group}.json"
    schema = json.loads(path.read_text())
    return jsonschema.Draft202012Validator(schema, registry=_registry(version))


def faults(manifest: dict[str, Any], version: str) -> list[str]:
    """What a version of Kubernetes would object to, each with its path."""
    validator = _validator(version, manifest["kind"], manifest["apiVersion"])
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return [
        f"{version} {name} {'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator.iter_errors(manifest)
    ]
