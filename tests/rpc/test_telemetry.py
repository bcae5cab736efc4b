"""Metrics that add up, traces that hang together, labels that stay few."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scoring_client.proto import context_pb2, sample_pb2, score_pb2, service_pb2, service_pb2_grpc
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.telemetry.labels import OTHER, BoundedLabel
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.sampling import RateLimit
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.telemetry.traces import OtelTraces
from scoring_service.types import EngineConfig, EngineInfo, Usage
from tests.pool.scripted import INFO, ScriptedExecutor
from tests.rpc.calls import collect, failure, group
from tests.rpc.conftest import RunningServer, run_server

DASHBOARD = Path(__file__).parents[2] / "dashboards" / "scoring-service.json"


class Watched:
    """A server with metrics on a port and traces in memory."""

    def __init__(self, server: RunningServer, port: int, spans: InMemorySpanExporter) -> None:
        self.server = server
        self.spans = spans
        self._port = port

    def read(self) -> dict[str, float]:
        """Samples by name and labels, as Prometheus reads them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as answer:
            text = answer.read().decode()
        return {
            sample.name
            + "".join(f"|{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def total(self, name: str) -> float:
        """Sum over labels of a metric."""
        found = await asyncio.to_thread(self.read)
        return sum(value for key, value in found.items() if key.partition("|")[0] == name)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def watched() -> AsyncIterator[Watched]:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(Metrics("team"), OtelTraces(provider))
    config = EngineConfig(model=str(tiny_model_path()))
    async with run_server(lambda _index: LocalExecutor(config), telemetry=telemetry) as running:
        telemetry.metrics.watch(running.pool)
        yield Watched(running, telemetry.metrics.serve("127.0.0.1", 0), spans)


def request(**context: Any) -> score_pb2.ScoreRequest:
    return score_pb2.ScoreRequest(
        groups=[group([1] * 5, [2, 3], [4])], context=context_pb2.RequestContext(**context)
    )


async def test_metrics_add_up_to_the_summaries(watched: Watched) -> None:
    names = {
        "scoring_prompt_tokens_total": "prompt_tokens",
        "scoring_scored_tokens_total": "completion_tokens",
        "scoring_sampled_tokens_total": "sampled_tokens",
        "scoring_computed_tokens_total": "computed_tokens",
        "scoring_cached_tokens_total": "cached_tokens",
        "scoring_head_rows_total": "head_rows",
        "scoring_reply_bytes_total": "reply_bytes",
    }
    before = {name: await watched.total(name) for name in names}
    sampling = sample_pb2.SamplingParams(max_tokens=4, ignore_eos=True)
    drawn = sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(token_ids=[1, 2])], n=3, sampling=sampling
    )
    stub = watched.server.stub
    answers = [await collect(call) for call in (*[stub.Score(request())] * 1, stub.Sample(drawn))]
    usages = [messages[-1].summary.usage for messages in answers]
    for name, field in names.items():
        expected = sum(getattr(usage, field) for usage in usages)
        assert await watched.total(name) - before[name] == expected, name
    assert sum(usage.sampled_tokens for usage in usages) == 12
    assert await watched.total("scoring_num_requests_running") == 0
    assert await watched.total("scoring_num_requests_waiting") == 0
    assert await watched.total("scoring_queue_tokens") == 0
    assert await watched.total("scoring_unread_reply_bytes") == 0
    assert await watched.total("scoring_request_queue_time_seconds_count") >= 2


async def test_every_rpc_is_counted_with_its_status(watched: Watched) -> None:
    stub = watched.server.stub
    bad = score_pb2.ScoreRequest(model="another", groups=[group([1], [2])])
    with pytest.raises(grpc.aio.AioRpcError):
        await collect(stub.Score(bad))
    sampling = sample_pb2.SamplingParams(max_tokens=4000, ignore_eos=True)
    long = sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(token_ids=[1])], n=50, sampling=sampling
    )
    cancelled = stub.Sample(long)
    await cancelled.read()
    cancelled.cancel()
    with pytest.raises(grpc.aio.AioRpcError):
        await collect(stub.Sample(long, timeout=0.3))
    await collect(stub.Score(request()))
    labels = "|grpc_service=scoring.v1.ScoringService|grpc_type=server_stream"
    wanted = {
        f"grpc_server_handled_total|grpc_code={code}|grpc_method={method}{labels}"
        for code, method in (
            ("NOT_FOUND", "Score"),
            ("OK", "Score"),
            ("CANCELLED", "Sample"),
            ("DEADLINE_EXCEEDED", "Sample"),
        )
    }
    for _ in range(100):  # the end of a cancelled call takes its time
        found = await asyncio.to_thread(watched.read)
        if wanted <= found.keys():
            break
        await asyncio.sleep(0.1)
    assert wanted <= found.keys(), wanted - found.keys()
    started = sum(v for k, v in found.items() if k.startswith("grpc_server_started_total"))
    handled = sum(v for k, v in found.items() if k.startswith("grpc_server_handled_total"))
    assert started == handled


async def test_what_alerts_wait_for_is_nought_before_it_happens(watched: Watched) -> None:
    """`increase` sees nothing in a series whose first sample is 1."""
    found = await asyncio.to_thread(watched.read)
    assert found["scoring_worker_restarts_total|worker=0"] == 0
    assert found["scoring_ready|model_name=tiny"] == 1
    rpcs = service_pb2.DESCRIPTOR.services_by_name["ScoringService"].methods
    assert {"ListModels", "Tokenize"} <= {rpc.name for rpc in rpcs}  # which no test here calls
    for rpc in rpcs:
        kind = "server_stream" if rpc.server_streaming else "unary"
        for code in ("INTERNAL", "UNKNOWN", "DATA_LOSS"):
            labels = f"grpc_code={code}|grpc_method={rpc.name}"
            series = f"{labels}|grpc_service=scoring.v1.ScoringService|grpc_type={kind}"
            assert found[f"grpc_server_handled_total|{series}"] == 0


def test_an_rpc_of_another_service_is_known_from_its_first_begin() -> None:
    metrics = Metrics()
    metrics.rpc_started("unary", "grpc.health.v1.Health", "Check")
    labels = {"grpc_type": "unary", "grpc_service": "grpc.health.v1.Health", "grpc_method": "Check"}
    for code, expected in (("INTERNAL", 0), ("OK", None)):
        handled = {**labels, "grpc_code": code}
        assert metrics.registry.get_sample_value("grpc_server_handled_total", handled) == expected


async def test_usage_is_counted_by_a_tag_of_few_values(watched: Watched) -> None:
    for team in ("red", "blue", "red"):
        await collect(watched.server.stub.Score(request(tags={"team": team, "run": "1"})))
    found = await asyncio.to_thread(watched.read)
    assert found["scoring_scored_tokens_total|identity=|tag=red"] == 6
    assert found["scoring_scored_tokens_total|identity=|tag=blue"] == 3


def test_a_label_that_callers_decide_stays_bounded() -> None:
    label = BoundedLabel(most=3)
    assert [label.of(value) for value in "abcdab"] == ["a", "b", "c", OTHER, "a", "b"]


def test_usage_has_few_series_however_many_callers_and_tags_there_are() -> None:
    metrics = Metrics("team")
    expected: Counter[str] = Counter()
    for number in range(5000):
        identity, tag = f"caller {number % 64}", f"team {number // 64 % 64}"
        usage = Usage(completion_tokens=number)
        metrics.answered("Score", identity, [("team", tag)], usage, 1)
        expected[identity] += number
    text = generate_latest(metrics.registry).decode()
    lines = [line for line in text.splitlines() if line.startswith("scoring_scored_tokens")]
    assert len(lines) <= 256 + 64
    assert "_created" not in text
    assert len(text.splitlines()) < 3000
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "scoring_scored_tokens_total":
                found[sample.labels["identity"]] += int(sample.value)
    assert found == expected, "callers keep their accounts"
    tags = {line.partition('tag="')[2].partition('"')[0] for line in lines}
    assert OTHER in tags
    assert "team 0" in tags


async def test_a_call_is_a_span_of_the_callers_trace_with_its_parts(watched: Watched) -> None:
    watched.spans.clear()
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    metadata = (("traceparent", f"00-{trace}-{parent}-01"),)
    ids = {"request_id": "r-1", "tags": {"run": "7"}}
    await collect(watched.server.stub.Score(request(**ids), metadata=metadata))
    spans = {span.name: span for span in watched.spans.get_finished_spans()}
    assert spans.keys() == {"scoring.v1.ScoringService/Score", "queue", "steps", "stream"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {trace}
    call = spans["scoring.v1.ScoringService/Score"]
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == parent
    assert call.attributes is not None
    assert call.attributes["scoring.request_id"] == "r-1"
    assert call.attributes["scoring.tag.run"] == "7"
    for name in ("queue", "steps", "stream"):
        child = spans[name]
        assert child.parent is not None
        assert child.parent.span_id == call.context.span_id
        assert call.start_time <= child.start_time <= child.end_time <= call.end_time  # type: ignore[operator]
    assert spans["queue"].end_time == spans["steps"].start_time


@asynccontextmanager
async def scripted(
    info: EngineInfo = INFO,
) -> AsyncIterator[tuple[RunningServer, ScriptedExecutor, Metrics, Any]]:
    """A server whose worker answers what the test lets it, its metrics and its spans."""
    spans, provider, executor = InMemorySpanExporter(), TracerProvider(), ScriptedExecutor(info)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(Metrics("team"), OtelTraces(provider))
    async with run_server(lambda _index: executor, telemetry=telemetry) as running:
        yield running, executor, telemetry.metrics, spans


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come about in time")


async def test_a_call_that_expires_before_anything_of_it_is_computed_has_waited() -> None:
    async with scripted() as (server, executor, metrics, spans):
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await collect(server.stub.Score(request(), timeout=0.5))
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not executor.calls)
        labels = {"rpc": "Score", "outcome": "never_begun"}
        name = "scoring_request_queue_time_seconds"
        sample = metrics.registry.get_sample_value
        await until(lambda: sample(f"{name}_count", labels) == 1)
        assert 0.3 < (sample(f"{name}_sum", labels) or 0.0) < 20.0
        await until(lambda: len(spans.get_finished_spans()) == 2)
        by_name = {span.name: span for span in spans.get_finished_spans()}
        assert by_name.keys() == {"queue", "scoring.v1.ScoringService/Score"}
        waited = by_name["queue"].end_time - by_name["queue"].start_time
        assert 0.3e9 < waited < 20e9


async def test_what_was_computed_of_a_cancelled_call_is_in_the_accounts() -> None:
    async with scripted() as (server, executor, metrics, spans):
        call = server.stub.Score(request(request_id="r-left", tags={"team": "red"}))
        await call.read()
        await until(lambda: bool(executor.calls))
        executor.score(next(iter(executor.calls)), most_rows=2)
        message = await call.read()
        assert sum(result.row_count for result in message.results) == 2
        call.cancel()
        labels = {"rpc": "Score", "outcome": "cut_short"}
        sample, whom = metrics.registry.get_sample_value, {"identity": "", "tag": "red"}
        await until(lambda: sample("scoring_request_queue_time_seconds_count", labels) == 1)
        assert sample("scoring_head_rows_total", whom) == 2
        assert (sample("scoring_reply_bytes_total", whom) or 0) >= message.ByteSize()
        assert sample("scoring_prompt_tokens_total", whom) == 0
        assert sample("scoring_request_compute_time_seconds_count", {"rpc": "Score"}) is None
        await until(lambda: bool(spans.get_finished_spans()))


async def test_a_stream_that_is_left_between_two_messages_ends_from_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its spans are whole, and whoever counts RPCs does so when the pool has nothing of it left."""
    left: list[int] = []
    few_bytes_unread = [("grpc.http2.bdp_probe", 0)]
    async with (
        scripted(replace(INFO, max_batch_tokens=1 << 20)) as (server, executor, _, spans),
        grpc.aio.insecure_channel(server.target, few_bytes_unread) as channel,
    ):
        handled = Metrics.rpc_handled

        def noted(metrics: Metrics, *labels: Any) -> None:
            left.append(server.pool.calls_left)
            handled(metrics, *labels)

        monkeypatch.setattr(Metrics, "rpc_handled", noted)
        large = score_pb2.ScoreRequest(groups=[group([1], *[[2] * 500] * 50)])
        call = service_pb2_grpc.ScoringServiceStub(channel).Score(large)
        await call.read()
        await until(lambda: bool(executor.calls))
        executor.score(next(iter(executor.calls)))
        # More than the connection takes without a reader: what was sent of it stays the same.
        unread = [-1, server.pool.unread_bytes]
        while unread[-1] != unread[-2]:
            await asyncio.sleep(0.1)
            unread.append(server.pool.unread_bytes)
        assert unread[-1] > 0
        call.cancel()
        await until(lambda: any(s.name.endswith("/Score") for s in spans.get_finished_spans()))
        assert server.pool.calls_left == 0
        *children, whole = spans.get_finished_spans()
        assert {child.name for child in children} == {"queue", "steps", "stream"}
        assert {child.parent.span_id for child in children} == {whole.context.span_id}
        assert whole.attributes["scoring.tokens"] == 50 * 501
        assert whole.attributes["rpc.grpc.status_code"] == "CANCELLED"
        await until(lambda: bool(left))
        assert left == [0]


async def test_a_call_that_fails_while_it_is_computed_has_all_its_spans() -> None:
    async with scripted() as (server, executor, metrics, spans):
        answer = asyncio.create_task(failure(server.stub.Score(request())))
        await until(lambda: bool(executor.calls))
        executor.score(next(iter(executor.calls)), most_rows=2)
        await asyncio.sleep(0.1)
        executor.die("exit code 1")
        assert (await answer)[0] is grpc.StatusCode.UNAVAILABLE
        await until(lambda: len(spans.get_finished_spans()) == 4)
        assert {span.name for span in spans.get_finished_spans()} == {
            "scoring.v1.ScoringService/Score",
            "queue",
            "steps",
            "stream",
        }
        rows = metrics.registry.get_sample_value(
            "scoring_head_rows_total", {"identity": "", "tag": ""}
        )
        assert rows == 2, "as they were sent"


def test_traces_that_begin_here_are_few_and_the_callers_are_its_own() -> None:
    now = [100.0]
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    traces = OtelTraces(provider, RateLimit(3.0, clock=lambda: now[0]))

    def call(*metadata: tuple[str, str]) -> bool:
        spans.clear()
        with traces.call("call", metadata) as span:
            span.child("queue", 1, 2)
        names = [span.name for span in spans.get_finished_spans()]
        assert span.is_recorded == bool(names), "nothing is said that nobody keeps"
        assert names in (["queue", "call"], []), "a whole trace or nothing"
        return bool(names)

    assert [call() for _ in range(5)] == [True] * 3 + [False] * 2
    now[0] += 0.4
    assert [call() for _ in range(3)] == [True, False, False]
    now[0] += 60.0
    assert [call() for _ in range(5)] == [True] * 3 + [False] * 2, "what was not used is not kept"
    asked = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"
    assert all(call(("traceparent", f"{asked}1")) for _ in range(5))
    now[0] += 60.0
    assert not call(("traceparent", f"{asked}0"))
    assert [call(("traceparent", "made-up")) for _ in range(4)] == [True] * 3 + [False]
    never = RateLimit(0.0, clock=lambda: now[0])
    now[0] += 1e6
    assert not never.takes_one()


async def test_the_dashboard_shows_metrics_that_exist(watched: Watched) -> None:
    await collect(watched.server.stub.Score(request()))
    exposed = {key.partition("|")[0] for key in await asyncio.to_thread(watched.read)}
    # Those that have no sample before something went wrong, and those of a worker process.
    known = exposed | {
        "scoring_requests_refused_total",
        "scoring_self_audits_total",
        "scoring_rows_per_step_sum",
        "scoring_rows_per_step_count",
    }
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    used = set(re.findall(r"\b(?:scoring|grpc_server)_\w+", " ".join(expressions)))
    assert len(used) > 20
    assert used <= known, used - known
