"""Sample calls."""

import secrets
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from scoring_client.calls.assembly import Assembler, SliceAssembler, WholeAssembler
from scoring_client.calls.call import fill_call, job_settings
from scoring_client.calls.decoding import ids_sent, sample_slice
from scoring_client.calls.division import PartSize, Unit, prompt_units
from scoring_client.calls.job import Job
from scoring_client.calls.requests import prompt_messages, sampling_message
from scoring_client.calls.resend import Key, PromptIndices, unfinished_prompts
from scoring_client.calls.row_plan import ConsecutiveRows
from scoring_client.calls.state import JobSettings
from scoring_client.errors import ProtocolError, ScoringError, invalid
from scoring_client.proto import sample_pb2
from scoring_client.values.inputs import PromptLike, SamplePrompt
from scoring_client.values.messages import set_fields
from scoring_client.values.options import SampleOptions, check_names
from scoring_client.values.samples import Sample, SampleResults

MAX_SAMPLES_PER_PROMPT = 65_536
"""Of one prompt in a call, as the contract has it."""


class SampleJob(Job[Sample, PromptIndices, SampleResults]):
    """A Sample call: prompts in, samples out."""

    rpc: ClassVar[str] = "Sample"
    iterator: ClassVar[str] = "sample_iter"

    def __init__(
        self,
        template: sample_pb2.SampleRequest,
        prompts: list[sample_pb2.SamplePrompt],
        settings: JobSettings,
        *,
        whole: bool,
    ) -> None:
        self._template = template
        self._prompts = prompts
        self._keys_in_order = [
            [(index, sample) for sample in _sample_indices(prompt, index, template)]
            for index, prompt in enumerate(self._prompts)
        ]
        self._first_attempt = True
        self._seeds: dict[int, int] = _given_seeds(self._prompts, template)
        make = WholeAssembler[Sample] if whole else SliceAssembler[Sample]
        assemblers: dict[Key, Assembler[Sample]] = {
            key: make(ConsecutiveRows) for keys in self._keys_in_order for key in keys
        }
        super().__init__(assemblers, template.context.request_id, settings)

    @property
    def model(self) -> str:
        """Name of the model that the call asks for."""
        return self._template.model

    def results(self, parts: list[Sample]) -> SampleResults:
        """Return samples by prompt."""
        by_key = {(part.prompt_index, part.sample_index): part for part in parts}
        return SampleResults(
            prompts=tuple(tuple(by_key[key] for key in keys) for keys in self._keys_in_order),
            provenance=self.call.provenance,
            processing=self.call.processing,
            usage=self.call.usage,
            provenances=tuple(self.call.provenances),
        )

    def _units(self, size: PartSize) -> list[Unit]:
        every = self._template.sampling.max_tokens
        units: list[Unit] = []
        for prompt, keys in zip(self._prompts, self._keys_in_order, strict=True):
            own = prompt.sampling
            most = own.max_tokens if own.HasField("max_tokens") else every
            units += prompt_units(prompt, keys, most, size)
        return units

    def _prepare_for_parts(self) -> None:
        """Draw the seeds that the caller left open: parts of a prompt must draw from one."""
        self._first_attempt = False
        for index in range(len(self._prompts)):
            self._seeds.setdefault(index, secrets.randbits(64))

    def _request_for(self, unfinished: dict[Key, Any]) -> tuple[Any, PromptIndices]:
        if self._first_attempt:
            # As the caller wrote it.
            prompts, indices = self._prompts, PromptIndices(tuple(range(len(self._prompts))))
        else:
            prompts, indices = unfinished_prompts(self._prompts, unfinished, self._seeds)
        self._first_attempt = False
        request = sample_pb2.SampleRequest()
        request.CopyFrom(self._template)
        request.prompts.extend(prompts)
        return request, indices

    def _keys(self, result: Any) -> list[Key]:
        if not result.HasField("prompt_index"):
            raise ProtocolError("a result does not say its prompt")
        prompt = self._indices.prompt(result.prompt_index)
        if result.HasField("seed"):
            self._seeds.setdefault(prompt, result.seed)
        if result.HasField("sample_index"):
            return [(prompt, result.sample_index)]
        if not result.HasField("status"):
            raise ProtocolError("a result does not say its sample")
        return [key for key in self._keys_in_order[prompt] if key in self._unfinished]

    def _status_of(self, result: Any) -> Any:
        return result.status if result.HasField("status") else None

    def _decode(self, result: Any, key: Key) -> Sample:
        top_logprobs, return_text = self._template.top_logprobs, self._template.return_text
        prompt, preamble = self._prompts[key[0]], self._attempt.preamble
        return sample_slice(result, top_logprobs, return_text, prompt, preamble, key)

    def _failed(self, key: Key, error: ScoringError) -> Sample:
        prompt_token_ids = ids_sent(self._prompts[key[0]])
        return Sample(
            prompt_index=key[0],
            sample_index=key[1],
            start=0,
            prompt_length=0 if prompt_token_ids is None else len(prompt_token_ids),
            prompt_token_ids=prompt_token_ids,
            token_ids=np.empty(0, dtype=np.int32),
            logprobs=np.empty(0, dtype=np.float32),
            processed_logprobs=np.empty(0, dtype=np.float32),
            top_token_ids=None,
            top_logprobs=None,
            text=None,
            finish_reason=None,
            matched_stop=None,
            seed=self._seeds.get(key[0]),
            weight_spans=(),
            last=True,
            processing=None,
            provenance=self._attempt.preamble.provenance,
            error=error,
        )

    def _item_path(self, key: Key) -> str:
        return f"prompts[{key[0]}] sample {key[1]}"


def sample_job(
    call: str, prompts: Iterable[PromptLike], options: SampleOptions, *, whole: bool
) -> SampleJob:
    """Return a Sample call.

    Args:
        call: Name of the method that was called, for errors.
        prompts: What to continue.
        options: Keyword arguments of the call.
        whole: Yield whole samples rather than slices.

    Raises:
        InvalidRequestError: the request is wrong, as far as this side can tell.
        TypeError: an option is unknown, or max_tokens is missing for a prompt.
    """
    check_names(options, SampleOptions, call)
    template = sample_pb2.SampleRequest()
    fill_call(template, options)
    # The same settings as a prompt can have, for all prompts.
    settings = SamplePrompt(
        "",
        temperature=options.get("temperature"),
        top_k=options.get("top_k"),
        top_p=options.get("top_p"),
        min_p=options.get("min_p"),
        defaults=options.get("defaults"),
        max_tokens=options.get("max_tokens"),
        min_tokens=options.get("min_tokens"),
        stop=options.get("stop", ()),
        stop_token_ids=options.get("stop_token_ids", ()),
        ignore_eos=options.get("ignore_eos"),
    )
    template.sampling.CopyFrom(sampling_message(settings, "sampling", options.get("seed")))
    set_fields(
        template,
        "",
        n=options.get("n"),
        top_logprobs=options.get("top_logprobs"),
        return_text=options.get("return_text"),
    )
    messages = prompt_messages(prompts)
    if "max_tokens" not in options:
        _check_own_max_tokens(call, messages)
    return SampleJob(template, messages, job_settings(options), whole=whole)


def _check_own_max_tokens(call: str, prompts: list[sample_pb2.SamplePrompt]) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt.sampling.HasField("max_tokens"):
            raise TypeError(
                f"{call}() missing required keyword argument 'max_tokens': "
                f"prompts[{index}] has none of its own"
            )


def _sample_indices(
    prompt: sample_pb2.SamplePrompt, index: int, template: sample_pb2.SampleRequest
) -> range:
    """Return the indices of a prompt's samples."""
    path, n = "n", template.n if template.HasField("n") else 1
    if prompt.HasField("n"):
        path, n = f"prompts[{index}].n", prompt.n
    if not 1 <= n <= MAX_SAMPLES_PER_PROMPT:
        # Without a sample there would be nothing to send, and each takes memory before it is sent.
        raise invalid(path, f"{n} is not in [1, {MAX_SAMPLES_PER_PROMPT}]")
    return range(prompt.first_sample_index, prompt.first_sample_index + n)


def _given_seeds(
    prompts: list[sample_pb2.SamplePrompt], template: sample_pb2.SampleRequest
) -> dict[int, int]:
    """Return the seeds that the caller gave, by prompt."""
    seeds: dict[int, int] = {}
    for index, prompt in enumerate(prompts):
        for holder in (prompt, prompt.sampling, template.sampling):
            if holder.HasField("seed"):
                seeds[index] = holder.seed
                break
    return seeds
