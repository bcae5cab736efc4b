"""The asynchronous client of a server's administration."""

# ruff: noqa: ASYNC109 - gRPC enforces the deadline, and the server learns of it.

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Unpack

import grpc

from scoring_client.calls.admin import (
    PUSH_METHOD,
    AdminCall,
    Answer,
    CallsLeftCallback,
    UpdateProgress,
    abort_update_call,
    drain_call,
    flush_cache_call,
    get_weights_call,
    push_defaults,
    resume_call,
    update_weights_call,
)
from scoring_client.connection.admin_channel import ADMIN_OPTIONS, AdminSettings, admin_error
from scoring_client.connection.aio_channel import telling_closed
from scoring_client.connection.channel import ChannelOptions, with_trace
from scoring_client.connection.closed import telling_closed_before
from scoring_client.connection.endpoint import Pem, call_metadata, endpoint
from scoring_client.connection.lifecycle import AsyncClient, given
from scoring_client.connection.retry import (
    MAX_POLL_SECONDS,
    countdown,
    growing_pauses,
    not_come,
    telling,
)
from scoring_client.connection.status import in_time
from scoring_client.errors import DeadlineError, NoTlsError, ScoringError, UnavailableError
from scoring_client.proto import admin_pb2, admin_pb2_grpc
from scoring_client.weights import health
from scoring_client.weights.given import Weights
from scoring_client.weights.options import PushOptions, UpdateOptions
from scoring_client.weights.push_aio import push
from scoring_client.weights.replicas import check_one_server
from scoring_client.weights.results import WeightsInfo, WeightUpdate


class AsyncAdminClient(AsyncClient):
    """Changes what one server serves; callers need the scope ``admin``.

    Use it as a context manager, or close it. Every call may raise the exceptions of
    ``scoring_client.errors``. Nothing is sent again by itself.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        model: str = "",
        timeout: float | None = 600.0,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        root_certificates: Pem | None = None,
        client_certificate: Pem | None = None,
        client_key: Pem | None = None,
        tls: bool = False,
        allow_plaintext_token: bool = False,
        channel: grpc.aio.Channel | None = None,
        channel_options: ChannelOptions = (),
    ) -> None:
        """Prepare a channel; it opens with a loop's first call.

        Args:
            target: Host and port of one server. Several servers behind one name each have weights
                of their own: see ``push_to_all``.
            model: Model of calls that name none. Empty = the only one served.
            timeout: Seconds for calls that set none; None = no limit. Short calls take 30 of them
                at most; ``drain`` has a limit of its own.
            token: As of ScoringClient, and so are the arguments that follow.
            credentials: TLS with these.
            root_certificates: TLS with a server whose certificate these (PEM, or a path) sign.
            client_certificate: Shown to a server that asks for one (PEM, or a path).
            client_key: Its key.
            tls: TLS with a server whose certificate a public authority signed.
            allow_plaintext_token: Send the token over a plain channel to another machine.
            channel: Use this one, and leave it open; the arguments about channels are ignored.
            channel_options: gRPC's options; they win over this package's.

        Raises:
            ValueError: an argument makes no sense, or the token would travel in plain text.
            OSError: the file of certificates cannot be read.
        """
        # First of all, before anything else is local.
        arguments = given(locals())
        self._settings = AdminSettings(target, model, timeout, call_metadata(token))
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
                options=[*ADMIN_OPTIONS, *channel_options],
            ),
            arguments,
        )

    @property
    def target(self) -> str:
        """Where the server is."""
        return self._settings.target

    async def takes_updates(self, timeout: float = 5.0) -> bool:
        """Return whether an update could begin now; see ``AdminClient.takes_updates``.

        Args:
            timeout: Seconds to wait for an answer.

        Raises:
            ScoringError: the server answered something else, such as that it has no AdminService.
        """
        try:
            return await self.ask_health(timeout)
        except ScoringError as error:
            if error.code in health.NOT_THERE:
                return False
            raise

    async def ask_health(self, timeout: float) -> bool:
        """Return whether an update could begin; see ``AdminClient.ask_health``.

        Raises:
            ScoringError: the server is not there, or answered something else.
        """
        check: Any = self._channel.get().unary_unary(health.HEALTH_CHECK)
        try:
            answer: bytes = await check(health.REQUEST, timeout=timeout)
        except grpc.RpcError as error:
            raise in_time(admin_error(error), self.target, timeout) from error
        return answer == health.SERVING

    async def push_weights(
        self, weights: Weights, *, version: int, **options: Unpack[PushOptions]
    ) -> WeightUpdate:
        """Send weights from this process's memory and have the server answer from them.

        Args:
            weights: A torch module, its ``state_dict``, or pairs of name and tensor (an iterator
                may make them one by one). Tensors are torch's, on any device and sharded by FSDP2
                as well, or numpy's. Wrappers' parts of names (``module.``, ``_orig_mod.``, …) are
                left out.
            version: Number of the new weights, larger than the running one.
            options: Those of PushOptions: ``base_version``, ``allow_older_version``, ``partial``,
                ``convert_dtypes``, ``digest``, ``weights_digest``, ``running_samples``,
                ``staging``, ``names``, ``merged_lora``, ``model``, ``timeout``, ``on_progress``.

        Returns:
            The update, committed: every answer that begins from now on has these weights.

        Raises:
            InvalidRequestError: the tensors are not the model's.
            UpdateInProgressError: somebody else's update is under way.
            PreconditionFailedError: the version, digest or set of tensors is not what was asked.
            ScoringError: see ``scoring_client.errors``. The old weights go on serving then.
        """
        model, filled = push_defaults([self], options)
        return (await push([self], weights, version, model, filled))[0]

    async def update_weights(
        self,
        *,
        version: int,
        path: str | None = None,
        repository: str | None = None,
        revision: str | None = None,
        **options: Unpack[UpdateOptions],
    ) -> WeightUpdate:
        """Have the server read weights itself, from where it was started to allow.

        Args:
            version: Number of the new weights, larger than the running one.
            path: Folder or file on the server.
            repository: Or a model on the Hub.
            revision: Its branch, tag or commit.
            options: Those of UpdateOptions: ``base_version``, ``allow_older_version``,
                ``weights_digest``, ``running_samples``, ``staging``, ``model``, ``timeout``,
                ``on_progress``.

        Returns:
            The update, committed.

        Raises:
            AccessDeniedError: the path or repository is not one of those allowed.
            NotFoundError: there is nothing.
            ScoringError: as of ``push_weights``.
        """
        call = update_weights_call(self._settings, version, path, repository, revision, options)
        progress = UpdateProgress(options.get("on_progress"))
        async for update in self._stream(call):
            progress.take(update)
        return progress.committed()

    async def get_weights(
        self, model: str | None = None, *, list_tensors: bool = False
    ) -> WeightsInfo:
        """Return which weights answer, and which update is under way.

        Args:
            model: Name of the model; default: the client's.
            list_tensors: Whether to list the model's tensors.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        return await self._unary(get_weights_call(self._settings, model, list_tensors))

    async def wait_for_version(
        self, version: int, timeout: float | None = 60.0, *, model: str | None = None
    ) -> WeightsInfo:
        """Wait until the server answers from this version of the weights, or a later one.

        Args:
            version: Least version.
            timeout: Seconds to wait; None = no limit.
            model: Name of the model; default: the client's.

        Raises:
            DeadlineError: it did not come in time, or the server did not answer; the message has
                what was said last.
            ScoringError: see ``scoring_client.errors``.
        """
        last: ScoringError | None = None
        for left, pause in countdown(timeout, growing_pauses()):
            call = get_weights_call(self._settings, model, list_tensors=False)
            try:
                info = await self._unary(call.within(min(left, MAX_POLL_SECONDS)))
            except NoTlsError:
                raise
            except (UnavailableError, DeadlineError) as error:
                last = telling(last, error)
            else:
                if info.version >= version:
                    return info
                last = None
            await asyncio.sleep(pause)
        raise not_come(version, timeout, last) from last

    async def abort_update(self, update_id: str = "", *, model: str | None = None) -> WeightUpdate:
        """Give up an update that is not committed yet, and return how it ended.

        Args:
            update_id: Its name; "" = whichever is under way.
            model: Name of the model; default: the client's.

        Raises:
            NotFoundError: it is not under way.
        """
        return await self._unary(abort_update_call(self._settings, model, update_id))

    async def flush_cache(self, model: str | None = None) -> int:
        """Forget cached prompts; no answer changes by it. Return the pages that were freed.

        Args:
            model: Name of the model; default: the client's.
        """
        return await self._unary(flush_cache_call(self._settings, model))

    async def drain(
        self,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: CallsLeftCallback | None = None,
    ) -> None:
        """Refuse new calls until ``resume``, and return once those that run have ended.

        New ones are refused from the moment on which the server has the request, and also when the
        wait is given up.

        Args:
            model: Name of the model; default: the client's.
            timeout: Seconds to wait for calls that run; None = no limit.
            on_progress: Called with the number of calls that still run, at once and every few
                seconds.

        Raises:
            DeadlineError: calls still run; new ones are refused nonetheless.
            AbortedError: another admin had calls taken again meanwhile (``CALLS_STILL_RUNNING``).
            ScoringError: see ``scoring_client.errors``.
        """
        async for calls_left in self._stream(drain_call(self._settings, model, timeout)):
            if on_progress is not None:
                on_progress(calls_left)

    async def resume(self, model: str | None = None) -> None:
        """Take calls again after ``drain``.

        Args:
            model: Name of the model; default: the client's.
        """
        await self._unary(resume_call(self._settings, model))

    async def open_push(self, timeout: float | None) -> Any:
        """Begin a stream of weights, for ``push_weights``."""
        await self._check_one_server()
        method: Any = self._channel.get().stream_stream(
            PUSH_METHOD,
            request_serializer=None,
            response_deserializer=admin_pb2.PushWeightsResponse.FromString,
        )
        with telling_closed_before():
            return method(timeout=timeout, metadata=with_trace(self._settings.metadata))

    @property
    def settings(self) -> AdminSettings:
        """What calls use that say nothing else."""
        return self._settings

    def _method(self, rpc: str) -> Any:
        return getattr(admin_pb2_grpc.AdminServiceStub(self._channel.get()), rpc)

    async def _check_one_server(self) -> None:
        if self._owns_channel:
            await asyncio.to_thread(check_one_server, self.target)

    async def _unary(self, call: AdminCall[Answer]) -> Answer:
        await self._check_one_server()
        try:
            with telling_closed(), telling_closed_before():
                answer = await self._method(call.rpc)(
                    call.request,
                    timeout=call.timeout,
                    metadata=with_trace(self._settings.metadata),
                )
        except grpc.RpcError as error:
            found = admin_error(error, call.request)
            raise in_time(found, self.target, call.timeout) from error
        return call.parse(answer)

    async def _stream(self, call: AdminCall[Answer]) -> AsyncGenerator[Answer, None]:
        await self._check_one_server()
        with telling_closed_before():
            answers = self._method(call.rpc)(
                call.request, timeout=call.timeout, metadata=with_trace(self._settings.metadata)
            )
        try:
            with telling_closed():
                async for answer in answers:
                    yield call.parse(answer)
        except grpc.RpcError as error:
            raise admin_error(error, call.request) from error
        finally:
            answers.cancel()
