#!/usr/bin/env python3
"""Write ``docs/api.md``: the contract with its comments, from the descriptors of ``protos/``.

python tools/generate_api_reference.py            rewrite it
python tools/generate_api_reference.py --check    fail when it is stale; write nothing
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "api.md"
PACKAGE = "scoring.v1"

INTRODUCTION = """\
# API reference

The contract `scoring.v1`, message by message, as [protos/scoring/v1](../protos/scoring/v1) has it.
Written by `make docs`; edit the comments there. Beside it the server answers
`grpc.health.v1.Health` (`""` = alive, `scoring.v1.ScoringService` = ready,
`scoring.v1.AdminService` = an update can begin) and reflection.
[errors.md](errors.md) tells what to do about each error, [concepts.md](concepts.md) what the words
mean.

Types are those of proto3. *optional* fields know whether they were set; unset never stands for a
silent default.
"""

_MESSAGES, _FIELDS, _ENUMS, _SERVICES = 4, 2, 5, 6
"""Field numbers in FileDescriptorProto and DescriptorProto: what paths of comments are made of."""
_ENUM_VALUES = _METHODS = 2

_SCALARS = {
    getattr(pb.FieldDescriptorProto, name): name.removeprefix("TYPE_").lower()
    for name in pb.FieldDescriptorProto.Type.keys()  # noqa: SIM118 - an enum wrapper, no dict
}


def descriptors() -> list[pb.FileDescriptorProto]:
    """Return the files of the contract, with comments."""
    command = [
        str(Path(sys.executable).parent / "buf"), "build", "protos", "--as-file-descriptor-set",
        "-o", "-",
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    files = pb.FileDescriptorSet.FromString(built.stdout).file
    own = [file for file in files if file.package == PACKAGE]
    # The services first; then by file.
    return sorted(own, key=lambda file: (not file.service, file.name))


def reference(files: list[pb.FileDescriptorProto]) -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for file in files:
        parts.extend(_services(file))
    for file in files:
        if file.message_type or file.enum_type:
            parts.append(f"## {file.name.rpartition('/')[2]}\n")
            parts.extend(_messages(file))
            parts.extend(_enums(file))
    return "\n".join(parts)


def _services(file: pb.FileDescriptorProto) -> Iterator[str]:
    comments = _comments(file)
    for number, service in enumerate(file.service):
        yield f"## {service.name}\n"
        yield _prose(comments[_SERVICES, number])
        yield "| RPC | request | answer | |\n|---|---|---|---|"
        for index, method in enumerate(service.method):
            stream = "stream of " if method.server_streaming else ""
            words = _cell(comments[_SERVICES, number, _METHODS, index])
            request, answer = _link(method.input_type), _link(method.output_type)
            yield f"| `{method.name}` | {request} | {stream}{answer} | {words} |"
        yield ""


def _messages(file: pb.FileDescriptorProto) -> Iterator[str]:
    comments = _comments(file)
    for number, message in enumerate(file.message_type):
        yield f"### {message.name}\n"
        yield _prose(comments[_MESSAGES, number])
        if not message.field:
            continue
        yield "| field | type | |\n|---|---|---|"
        for index, field in enumerate(message.field):
            words = _cell(comments[_MESSAGES, number, _FIELDS, index])
            yield f"| `{field.name}` | {_type(message, field)} | {words} |"
        yield ""


def _enums(file: pb.FileDescriptorProto) -> Iterator[str]:
    comments = _comments(file)
    for number, enum in enumerate(file.enum_type):
        yield f"### {enum.name}\n"
        yield _prose(comments[_ENUMS, number])
        yield "| value | |\n|---|---|"
        for index, value in enumerate(enum.value):
            words = _cell(comments[_ENUMS, number, _ENUM_VALUES, index])
            yield f"| `{value.name}` | {words} |"
        yield ""


def _comments(file: pb.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(location.path): location.leading_comments or location.trailing_comments
        for location in file.source_code_info.location
    }


def _type(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    if (entry := _map_entry(message, field)) is not None:
        key, value = entry.field
        return f"map of {_plain_type(key)} to {_plain_type(value)}"
    kind = _plain_type(field)
    if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"*optional* {kind}"
    if field.HasField("oneof_index"):
        return f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return kind


def _map_entry(
    message: pb.DescriptorProto, field: pb.FieldDescriptorProto
) -> pb.DescriptorProto | None:
    name = field.type_name.rpartition(".")[2]
    for nested in message.nested_type:
        if nested.name == name and nested.options.map_entry:
            return nested
    return None


def _plain_type(field: pb.FieldDescriptorProto) -> str:
    return _link(field.type_name) if field.type_name else _SCALARS[field.type]


def _link(type_name: str) -> str:
    name = type_name.removeprefix(f".{PACKAGE}.")
    if name.startswith("."):
        return f"`{name.removeprefix('.')}`"
    return f"[{name}](#{name.lower()})"


def _prose(comment: str) -> str:
    """Return a comment as Markdown: what is indented in it is a table and stays one."""
    blocks: list[str] = []
    for block in comment.removesuffix("\n").split("\n\n"):
        lines = [line.removeprefix(" ") for line in block.split("\n")]
        table = all(line.startswith("  ") for line in lines)
        text = "\n".join(lines)
        blocks.append(f"```text\n{text}\n```" if table else text)
    return "\n\n".join(blocks) + "\n"


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    page = reference(descriptors())
    if OUTPUT.exists() and OUTPUT.read_text() == page:
        return 0
    if "--check" in arguments:
        print("docs/api.md is stale; run: make docs", file=sys.stderr)
        return 1
    OUTPUT.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
