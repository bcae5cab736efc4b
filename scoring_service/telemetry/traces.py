"""OpenTelemetry traces, where its packages are installed and an endpoint is named.

A call is a span of the caller's trace (W3C `traceparent` in its metadata), with one child each for
the wait in the queue, the steps that computed it and the stream of its answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from scoring_service.errors import ConfigurationError
from scoring_service.telemetry.sampling import RateLimit

_W3C = ("traceparent", "tracestate")

Attributes = Mapping[str, str | int | float]


class Span:
    """One call's span; the one that records nothing."""

    is_recorded = False
    """Whether anything that is said of the call is kept."""

    def child(self, name: str, began_ns: int, ended_ns: int) -> None:
        """Something that happened meanwhile, in nanoseconds since the epoch."""

    def note(self, attributes: Attributes) -> None:
        """Says more about the call."""

    def failed(self, code: str) -> None:
        """The call ended with an error."""


_UNRECORDED = nullcontext(Span())


class Traces:
    """Makes spans; the one that makes none."""

    def call(
        self, name: str, metadata: Iterable[tuple[str, Any]] | None
    ) -> AbstractContextManager[Span]:
        """A span around a call, in the trace that its metadata names."""
        return _UNRECORDED

    def shutdown(self) -> None:
        """Sends what is left."""


class _OtelSpan(Span):
    is_recorded = True

    def __init__(self, traces: OtelTraces, span: Any) -> None:
        self._traces = traces
        self._span = span

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_error: object) -> None:
        self._span.end()

    def child(self, name: str, began_ns: int, ended_ns: int) -> None:
        """See Span."""
        self._traces.ended(self._span, name, began_ns, ended_ns)

    def note(self, attributes: Attributes) -> None:
        """See Span."""
        self._span.set_attributes(dict(attributes))

    def failed(self, code: str) -> None:
        """See Span."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.grpc.status_code", code)
        self._span.set_status(StatusCode.ERROR, code)


class OtelTraces(Traces):
    """Spans through a tracer provider of OpenTelemetry's SDK.

    Args:
        provider: whose sampler decides about traces.
        limit: of those that begin here, asked before the provider is: to have the SDK make a span
            that it then drops takes longer than all metrics of the call. None = no other than the
            provider's.
    """

    def __init__(self, provider: Any, limit: RateLimit | None = None) -> None:
        from opentelemetry.context import Context
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._limit = limit
        self._tracer = provider.get_tracer("scoring_service")
        self._propagator = TraceContextTextMapPropagator()
        self._nobodys = Context()
        self._span_of = get_current_span
        self._kind = SpanKind.SERVER
        self._context = SpanContext
        self._span = ReadableSpan

    def call(
        self, name: str, metadata: Iterable[tuple[str, Any]] | None
    ) -> AbstractContextManager[Span]:
        """See Traces."""
        carrier = {k: v for k, v in metadata or () if k in _W3C and isinstance(v, str)}
        context = self._propagator.extract(carrier) if carrier else self._nobodys
        if self._limit is not None and not self._is_begun(context) and not self._limit.takes_one():
            return _UNRECORDED
        span = self._tracer.start_span(name, context=context, kind=self._kind)
        return _OtelSpan(self, span) if span.is_recording() else _UNRECORDED

    def _is_begun(self, context: Any) -> bool:
        """Whether a caller's trace is in it, whose beginner decides about it."""
        return bool(context) and self._span_of(context).get_span_context().is_valid

    def ended(self, parent: Any, name: str, began_ns: int, ended_ns: int) -> None:
        """Exports a child that is over already.

        It is made as an ended span at once: one that can still be written to, started and ended in
        the same moment, costs eight times as much.
        """
        context = parent.get_span_context()
        own = self._context(
            context.trace_id,
            self._tracer.id_generator.generate_span_id(),
            is_remote=False,
            trace_flags=context.trace_flags,
            trace_state=context.trace_state,
        )
        child = self._span(
            name,
            own,
            parent=context,
            resource=parent.resource,
            start_time=began_ns,
            end_time=ended_ns,
            instrumentation_scope=parent.instrumentation_scope,
        )
        self._tracer.span_processor.on_end(child)

    def shutdown(self) -> None:
        """See Traces."""
        self._provider.shutdown()


def limit_of(traces_per_second: float) -> RateLimit | None:
    """For traces that begin here; None where the environment's OTEL_TRACES_SAMPLER decides."""
    return None if "OTEL_TRACES_SAMPLER" in os.environ else RateLimit(traces_per_second)


def traces_to(endpoint: str | None, service_version: str, traces_per_second: float) -> Traces:
    """Traces that go to an OTLP endpoint over gRPC; none without an endpoint.

    Args:
        endpoint: http://HOST:PORT or https://HOST:PORT.
        service_version: of the spans' resource.
        traces_per_second: begun here, at most; a caller that has decided about its trace is
            followed. The environment's OTEL_TRACES_SAMPLER takes its place.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            "otlp_endpoint needs OpenTelemetry: pip install '.[server,otel]' in a clone"
        ) from error
    resource = Resource.create(
        {"service.name": "scoring-service", "service.version": service_version}
    )
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OtelTraces(provider, limit_of(traces_per_second))
