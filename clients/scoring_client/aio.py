"""The asynchronous client: the twin of ``scoring_client.client``."""

# ruff: noqa: ASYNC109 - gRPC enforces the deadline, and the server learns of it.

import asyncio
from collections.abc import AsyncGenerator, Iterable
from itertools import repeat
from typing import Any, Unpack

import grpc
import grpc.aio

from scoring_client.calls.aio_streams import Alone, Together
from scoring_client.calls.assembly import PartT
from scoring_client.calls.call import call_defaults
from scoring_client.calls.division import (
    NEVER_DIVIDED_BELOW,
    PartSize,
    checked_parts,
)
from scoring_client.calls.job import Job, ResultsT
from scoring_client.calls.preferred_sizes import PreferredSizes
from scoring_client.calls.sample_job import sample_job
from scoring_client.calls.score_job import score_job, topk_job
from scoring_client.calls.tokenize import token_ids, tokenize_request
from scoring_client.connection.aio_channel import telling_closed
from scoring_client.connection.channel import ChannelOptions, with_trace
from scoring_client.connection.closed import telling_closed_before
from scoring_client.connection.endpoint import Pem, call_metadata, endpoint
from scoring_client.connection.lifecycle import AsyncClient, given
from scoring_client.connection.retry import (
    MAX_POLL_SECONDS,
    Attempts,
    ClientTimeout,
    RetryPolicy,
    countdown,
    growing_pauses,
    not_come,
    not_ready,
    short_time_limit,
    telling,
)
from scoring_client.connection.servers import ServerCount
from scoring_client.connection.status import error_from_rpc, in_time
from scoring_client.errors import (
    CancelledCallError,
    DeadlineError,
    NoTlsError,
    ScoringError,
    UnavailableError,
)
from scoring_client.proto import model_info_pb2, service_pb2_grpc
from scoring_client.values.inputs import Expect, GroupLike, PromptLike, RequestContext
from scoring_client.values.model_info import ModelInfo, ServedModel, model_info, served_models
from scoring_client.values.options import SampleOptions, ScoreOptions, TopKOptions
from scoring_client.values.results import CompletionScores, CompletionTopK, ScoreResults
from scoring_client.values.samples import Sample, SampleResults

READY_POLL_SECONDS = 0.5


class AsyncScoringClient(AsyncClient):
    """Asks a scoring server from an event loop.

    One client serves many calls at once, and may be asked from one loop after the other. Use it as
    a context manager, or close it. Everything is as in ScoringClient, with ``await`` or
    ``async for`` before it.

    Every call may raise the exceptions of ``scoring_client.errors``; all of them are ScoringError.
    A stream that breaks is resumed with the items that were unfinished.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        model: str = "",
        timeout: float | None = 600.0,
        expect: Expect | None = None,
        context: RequestContext | None = None,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        root_certificates: Pem | None = None,
        client_certificate: Pem | None = None,
        client_key: Pem | None = None,
        tls: bool = False,
        allow_plaintext_token: bool = False,
        channel: grpc.aio.Channel | None = None,
        channel_options: ChannelOptions = (),
        max_attempts: int = 5,
        tokens_per_part: int | None = None,
        max_parts_in_flight: int = 8,
    ) -> None:
        """Prepare a channel; it opens with a loop's first call.

        Arguments and errors as of ScoringClient.
        """
        # First of all, before anything else is local.
        arguments = given(locals())
        self._model = model
        self._timeout = timeout
        self._defaults = call_defaults(model, timeout, expect, context)
        self._metadata = call_metadata(token)
        self._retry = RetryPolicy(max_attempts=max_attempts)
        self._part = None if tokens_per_part is None else PartSize(tokens_per_part)
        self._max_parts = checked_parts(max_parts_in_flight)
        self._sizes = PreferredSizes()
        self._server = target if channel is None else "the server"
        self._servers = ServerCount(target if channel is None else None)
        super().__init__(
            channel
            or endpoint(
                target,
                token=token,
                credentials=credentials,
                root_certificates=root_certificates,
                client_certificate=client_certificate,
                client_key=client_key,
                tls=tls,
                allow_plaintext_token=allow_plaintext_token,
                options=channel_options,
            ),
            arguments,
        )

    async def wait_ready(
        self, timeout: float | None = 60.0, *, model: str | None = None
    ) -> ModelInfo:
        """Wait until a server answers for the model, and return what it says of it.

        Args:
            timeout: Seconds to wait; None = no limit.
            model: Name of the model; default: the client's.

        Raises:
            UnavailableError: no server was ready in time; at once (NoTlsError) where it speaks no
                TLS and the client does.
            ModelNotFoundError: the server has no such model.
        """
        last: ScoringError | None = None
        for left, pause in countdown(timeout, repeat(READY_POLL_SECONDS)):
            try:
                return await self.model_info(model, timeout=min(left, MAX_POLL_SECONDS))
            except NoTlsError:
                raise
            except (UnavailableError, DeadlineError) as error:
                last = telling(last, error)
            await asyncio.sleep(pause)
        raise not_ready(timeout, last) from last

    async def model_info(
        self,
        model: str | None = None,
        *,
        timeout: float | ClientTimeout | None = ClientTimeout.CLIENTS,
    ) -> ModelInfo:
        """Return what a trainer has to know of a model before it starts.

        Args:
            model: Name of the model; default: the client's.
            timeout: Seconds; None = no limit. Default: the client's, and 30 at most.

        Raises:
            ModelNotFoundError: the server has no such model; the message lists those it has.
            UnavailableError: no server answered, or the model is loading.
        """
        name = self._model if model is None else model
        request = model_info_pb2.GetModelInfoRequest(model=name)
        return model_info(await self._unary("GetModelInfo", request, timeout))

    async def list_models(
        self, *, timeout: float | ClientTimeout | None = ClientTimeout.CLIENTS
    ) -> tuple[ServedModel, ...]:
        """Return the models served.

        Args:
            timeout: Seconds; None = no limit. Default: the client's, and 30 at most.

        Raises:
            UnavailableError: no server answered.
        """
        request = model_info_pb2.ListModelsRequest()
        return served_models(await self._unary("ListModels", request, timeout))

    async def tokenize(
        self,
        texts: Iterable[str],
        *,
        add_special_tokens: bool = True,
        model: str | None = None,
        timeout: float | ClientTimeout | None = ClientTimeout.CLIENTS,
    ) -> list[list[int]]:
        """Return the token ids of texts, by the model's own tokenizer.

        Arguments and errors as of ``ScoringClient.tokenize``.
        """
        name = self._model if model is None else model
        request = tokenize_request(name, texts, add_special_tokens)
        return token_ids(await self._unary("Tokenize", request, timeout))

    async def wait_for_version(
        self, version: int, timeout: float | None = 60.0, *, model: str | None = None
    ) -> ModelInfo:
        """Wait until the server answers from this version of the weights, or a later one.

        A server that loads, starts again, or has yet to be given weights has not got it yet. To
        have one call wait, give it ``expect=Expect(min_weight_version=…)`` instead. Of several
        servers behind the target this asks one after the other, whichever gRPC picks, and returns
        when one of them has it.

        Args:
            version: Least version.
            timeout: Seconds to wait; None = no limit.
            model: Name of the model; default: the client's.

        Raises:
            DeadlineError: it did not come in time, or no server answered; the message has what was
                said last.
            NoTlsError: at once, where the server speaks no TLS and the client does.
        """
        last: ScoringError | None = None
        for left, pause in countdown(timeout, growing_pauses()):
            try:
                info = await self.model_info(model, timeout=min(left, MAX_POLL_SECONDS))
            except NoTlsError:
                raise
            except (UnavailableError, DeadlineError) as error:
                last = telling(last, error)
            else:
                if info.weight_version >= version:
                    return info
                last = None
            await asyncio.sleep(pause)
        raise not_come(version, timeout, last) from last

    async def score(
        self, groups: Iterable[GroupLike], **options: Unpack[ScoreOptions]
    ) -> ScoreResults[CompletionScores]:
        """Return the log-probs of completions.

        Args:
            groups: PromptGroups or pairs (prompt, completions). A prompt is text or token ids; so
                is a completion, or a Completion with rows or candidates.
            options: Those of ScoreOptions: the distribution (``temperature``, ``top_k``, ``top_p``,
                ``min_p``, ``keep_realised``, ``defaults``), what is wanted of each row beside the
                log-prob (``processed_logprobs``, ``entropy``, ``rank``, ``logsumexp``,
                ``log_kept_mass``, ``tokens``, ``token_ids``), ``next_token``, and of every call
                ``model``, ``expect``, ``context``, ``timeout``, ``on_error``, ``on_progress``.

        Returns:
            ``results[g][c]`` has the scores of completion c of group g.

        Raises:
            InvalidRequestError: the request, or (with ``on_error="raise"``) an item is wrong; its
                ``violations`` name the fields, its ``item_errors`` the items.
            ScoringError: see ``scoring_client.errors``.
        """
        return await self._collect(score_job("score", groups, self._filled(options), whole=True))

    def score_iter(
        self, groups: Iterable[GroupLike], **options: Unpack[ScoreOptions]
    ) -> AsyncGenerator[CompletionScores, None]:
        """Yield the scores of each completion once they are whole, in any order.

        Arguments and errors as of ``score``. With ``on_error="raise"`` the failed items raise at
        the end. Closing the iterator cancels the call.
        """
        return self._run(score_job("score_iter", groups, self._filled(options), whole=True))

    def score_slices(
        self, groups: Iterable[GroupLike], **options: Unpack[ScoreOptions]
    ) -> AsyncGenerator[CompletionScores, None]:
        """Yield slices of rows as they arrive: ascending within a completion, never twice.

        Arguments and errors as of ``score_iter``; besides, an item fails with ResultChangedError
        when the weights change while its broken stream is resumed.
        """
        return self._run(score_job("score_slices", groups, self._filled(options), whole=False))

    async def topk_logprobs(
        self, groups: Iterable[GroupLike], k: int, **options: Unpack[TopKOptions]
    ) -> ScoreResults[CompletionTopK]:
        """Return the K most likely tokens of every row, with everything that ``score`` gives.

        Args:
            groups: As of ``score``.
            k: Tokens listed for each row.
            options: Those of ``score``, and ``token_id_limit``: only ids below it are listed, the
                rest count as tail.

        Returns:
            ``results[g][c]`` has the scores and the top-K of completion c of group g.

        Raises:
            InvalidRequestError: as of ``score``.
            ScoringError: see ``scoring_client.errors``.
        """
        return await self._collect(
            topk_job("topk_logprobs", groups, k, self._filled(options), whole=True)
        )

    def topk_logprobs_iter(
        self, groups: Iterable[GroupLike], k: int, **options: Unpack[TopKOptions]
    ) -> AsyncGenerator[CompletionTopK, None]:
        """Yield the top-K of each completion once they are whole; see ``score_iter``."""
        return self._run(
            topk_job("topk_logprobs_iter", groups, k, self._filled(options), whole=True)
        )

    def topk_logprobs_slices(
        self, groups: Iterable[GroupLike], k: int, **options: Unpack[TopKOptions]
    ) -> AsyncGenerator[CompletionTopK, None]:
        """Yield slices of rows as they arrive; see ``score_slices``."""
        return self._run(
            topk_job("topk_logprobs_slices", groups, k, self._filled(options), whole=False)
        )

    async def sample(
        self, prompts: Iterable[PromptLike], **options: Unpack[SampleOptions]
    ) -> SampleResults:
        """Return samples with the log-probs of what was drawn.

        Args:
            prompts: SamplePrompts, text or token ids.
            options: Those of SampleOptions: ``max_tokens`` (required unless every prompt has its
                own), ``n``, ``min_tokens``, ``seed``, ``stop``, ``stop_token_ids``, ``ignore_eos``,
                ``top_logprobs``, ``return_text``, the distribution (``temperature``, ``top_k``,
                ``top_p``, ``min_p``, ``defaults``), and of every call ``model``, ``expect``,
                ``context``, ``timeout``, ``on_error``, ``on_progress``.

        Returns:
            ``results[p][s]`` is the s-th sample of prompt p.

        Raises:
            InvalidRequestError: as of ``score``.
            ScoringError: see ``scoring_client.errors``.
        """
        return await self._collect(sample_job("sample", prompts, self._filled(options), whole=True))

    def sample_iter(
        self, prompts: Iterable[PromptLike], **options: Unpack[SampleOptions]
    ) -> AsyncGenerator[Sample, None]:
        """Yield each sample once it is whole, in any order; arguments and errors as of ``sample``.

        With ``on_error="raise"`` the failed items raise at the end. Closing the iterator cancels
        the call.
        """
        return self._run(sample_job("sample_iter", prompts, self._filled(options), whole=True))

    def sample_slices(
        self, prompts: Iterable[PromptLike], **options: Unpack[SampleOptions]
    ) -> AsyncGenerator[Sample, None]:
        """Yield tokens as they are drawn: ascending within a sample, never twice.

        Arguments and errors as of ``sample_iter``; besides, an item fails with ResultChangedError
        when the weights change while its broken stream is resumed.
        """
        return self._run(sample_job("sample_slices", prompts, self._filled(options), whole=False))

    def _filled(self, options: Any) -> Any:
        return {**self._defaults, **options}

    def _method(self, rpc: str) -> Any:
        return getattr(service_pb2_grpc.ScoringServiceStub(self._channel.get()), rpc)

    async def _collect(self, job: Job[PartT, Any, ResultsT]) -> ResultsT:
        with job.losing_what_is_finished():
            return job.results([part async for part in self._run(job)])

    async def _run(self, job: Job[PartT, Any, Any]) -> AsyncGenerator[PartT, None]:
        """Yield what the caller gets, over as many parts and attempts as it takes."""
        attempts = Attempts(self._retry, job.call.settings.timeout, servers=self._servers)
        method, metadata = self._method(job.rpc), with_trace(self._metadata)

        def open_call(request: Any, timeout: float | None) -> Any:
            return method(request, timeout=timeout, metadata=metadata)

        size = await self._part_size(job, attempts)
        parts = [job] if size is None else job.divide(size)
        streams: Alone[PartT] | Together[PartT] = (
            Alone(job, attempts, open_call)
            if len(parts) == 1
            else Together(parts, attempts, open_call, self._max_parts)
        )
        try:
            while (found := await streams.next_parts()) is not None:
                for part in found:
                    yield part
        finally:
            await streams.close()
        job.call.raise_item_errors()

    async def _part_size(self, job: Job[Any, Any, Any], attempts: Attempts) -> PartSize | None:
        """Return how large the parts of a call should be; None = it is one part."""
        if self._part is not None or job.divisible_tokens < NEVER_DIVIDED_BELOW:
            return self._part
        if (size := self._sizes.fresh(job.model)) is not None:
            return size
        left = attempts.remaining()
        try:
            info = await self.model_info(job.model, timeout=min(left or 10.0, 10.0))
        except CancelledCallError:
            raise
        except ScoringError as error:
            return self._sizes.unsaid(job.model, error)
        return self._sizes.said(job.model, info.limits)

    async def _unary(self, rpc: str, request: Any, timeout: float | ClientTimeout | None) -> Any:
        limit = short_time_limit(timeout, self._timeout)
        try:
            with telling_closed(), telling_closed_before():
                return await self._method(rpc)(
                    request, timeout=limit, metadata=with_trace(self._metadata)
                )
        except grpc.RpcError as error:
            found = error_from_rpc(error, request_id="", request_bytes=request.ByteSize())
            raise in_time(found, self._server, limit) from error
