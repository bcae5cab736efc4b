"""Sending only the unfinished items again, and reading their answers in the caller's indices."""

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from scoring_client.errors import FieldViolation, ProtocolError, ScoringError, reworded
from scoring_client.proto import sample_pb2, sequence_pb2

Key = tuple[int, int]
"""(group, completion) or (prompt, sample index), in the caller's indices."""

_GROUP_PATH = re.compile(r"\bgroups\[(\d+)\](?:\.completions\[(\d+)\])?")
_PROMPT_PATH = re.compile(r"\bprompts\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class GroupIndices:
    """Where the groups and completions of one attempt stand in the caller's request."""

    groups: tuple[int, ...]
    """The caller's index of each group sent."""
    completions: tuple[tuple[int, ...], ...]
    """The caller's index of each completion sent, by group sent."""

    def group(self, sent: int) -> int:
        """Return the caller's index of a group.

        Raises:
            ProtocolError: no such group was sent.
        """
        if not 0 <= sent < len(self.groups):
            raise ProtocolError(f"a result for group {sent} of {len(self.groups)}")
        return self.groups[sent]

    def keys(self, sent_group: int) -> list[Key]:
        """Return the caller's indices of all completions that a group was sent with.

        Raises:
            ProtocolError: no such group was sent.
        """
        group = self.group(sent_group)
        return [(group, completion) for completion in self.completions[sent_group]]

    def key(self, sent_group: int, sent_completion: int) -> Key:
        """Return the caller's indices of a completion.

        Raises:
            ProtocolError: no such completion was sent.
        """
        group = self.group(sent_group)
        completions = self.completions[sent_group]
        if not 0 <= sent_completion < len(completions):
            raise ProtocolError(
                f"a result for completion {sent_completion} of {len(completions)} in group {group}"
            )
        return group, completions[sent_completion]

    def translate(self, text: str) -> str:
        """Return ``text`` with the paths of this attempt's request as the caller's."""

        def path(match: re.Match[str]) -> str:
            sent = int(match[1])
            if sent >= len(self.groups):
                return match[0]
            translated = f"groups[{self.groups[sent]}]"
            if match[2] is None:
                return translated
            completion = int(match[2])
            if completion < len(self.completions[sent]):
                completion = self.completions[sent][completion]
            return f"{translated}.completions[{completion}]"

        return _GROUP_PATH.sub(path, text)


@dataclass(frozen=True, slots=True)
class PromptIndices:
    """Where the prompts of one attempt stand in the caller's request."""

    prompts: tuple[int, ...]
    """The caller's index of each prompt sent."""

    def prompt(self, sent: int) -> int:
        """Return the caller's index of a prompt.

        Raises:
            ProtocolError: no such prompt was sent.
        """
        if not 0 <= sent < len(self.prompts):
            raise ProtocolError(f"a result for prompt {sent} of {len(self.prompts)}")
        return self.prompts[sent]

    def translate(self, text: str) -> str:
        """Return ``text`` with the paths of this attempt's request as the caller's."""

        def path(match: re.Match[str]) -> str:
            sent = int(match[1])
            return f"prompts[{self.prompts[sent]}]" if sent < len(self.prompts) else match[0]

        return _PROMPT_PATH.sub(path, text)


def unfinished_groups(
    groups: Sequence[sequence_pb2.PromptGroup], unfinished: Collection[Key]
) -> tuple[list[sequence_pb2.PromptGroup], GroupIndices]:
    """Return the groups that hold unfinished completions, with no others in them."""
    wanted: dict[int, list[int]] = {}
    for group, completion in sorted(unfinished):
        wanted.setdefault(group, []).append(completion)
    messages = []
    for group, completions in wanted.items():
        message = groups[group]
        if len(completions) < len(message.completions):
            reduced = sequence_pb2.PromptGroup()
            reduced.CopyFrom(message)
            del reduced.completions[:]
            reduced.completions.extend(message.completions[index] for index in completions)
            message = reduced
        messages.append(message)
    return messages, GroupIndices(tuple(wanted), tuple(map(tuple, wanted.values())))


def unfinished_prompts(
    prompts: Sequence[sample_pb2.SamplePrompt],
    unfinished: Collection[Key],
    seeds: Mapping[int, int],
) -> tuple[list[sample_pb2.SamplePrompt], PromptIndices]:
    """Return prompts whose samples are exactly the unfinished ones.

    Random numbers depend on the seed and the sample's index, so a sample that is asked for under
    both again is drawn the same.

    Args:
        prompts: The caller's prompts.
        unfinished: (prompt, sample index) of every unfinished sample.
        seeds: Seeds that answers echoed, by prompt.
    """
    wanted: dict[int, list[int]] = {}
    for prompt, sample in sorted(unfinished):
        wanted.setdefault(prompt, []).append(sample)
    messages: list[sample_pb2.SamplePrompt] = []
    indices: list[int] = []
    for prompt, samples in wanted.items():
        runs = _runs(samples)
        seed = seeds.get(prompt)
        if seed is None and len(runs) > 1 and not prompts[prompt].HasField("seed"):
            # Split in two, the prompt would get two seeds.
            seed = secrets.randbits(64)
        for first, count in runs:
            message = sample_pb2.SamplePrompt()
            message.CopyFrom(prompts[prompt])
            message.first_sample_index = first
            message.n = count
            if seed is not None:
                message.seed = seed
            messages.append(message)
            indices.append(prompt)
    return messages, PromptIndices(tuple(indices))


class Translates(Protocol):
    """Knows how the caller's paths differ from those of a request that was sent."""

    def translate(self, text: str) -> str:
        """Return ``text`` with the paths of the request as the caller's."""


def in_callers_indices(error: ScoringError, indices: Translates) -> ScoringError:
    """Return ``error`` with the paths in it as the caller's."""
    violations = [
        FieldViolation(indices.translate(item.field), indices.translate(item.description))
        for item in error.violations
    ]
    return reworded(error, indices.translate(error.message), violations)


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending indices as runs (first, count)."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs
