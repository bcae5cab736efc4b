"""What the log says of calls, in both formats, and what it never says."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TextIO, cast

import grpc
import pytest
import pytest_asyncio
import structlog
from structlog.testing import capture_logs

from scoring_client.proto import (
    admin_pb2,
    admin_pb2_grpc,
    context_pb2,
    model_info_pb2,
    sample_pb2,
    score_pb2,
)
from scoring_service.engine.events import BugReport
from scoring_service.errors import Fault, Reason
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.rpc.interceptors.refusal_log import RefusalLog
from scoring_service.telemetry.log_writer import LogWriter
from scoring_service.telemetry.logs import LineTime, configure_logs
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.telemetry.traces import Span, Traces
from scoring_service.types import EngineConfig
from tests.pool.scripted import Scripted, settled
from tests.rpc.calls import collect, failure, group
from tests.rpc.conftest import RunningServer, run_server

SECRET = "s3cret" * 5
METADATA = (("authorization", f"Bearer {SECRET}"),)


class FailedSpans(Traces):
    """Knows only which spans ended with an error."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextmanager
    def call(self, name: str, metadata: Any) -> Iterator[Span]:
        span = Span()
        span.failed = self.failed.append  # type: ignore[method-assign]
        yield span


@pytest.fixture(scope="module")
def spans() -> FailedSpans:
    return FailedSpans()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(
    tmp_path_factory: pytest.TempPathFactory, spans: FailedSpans
) -> AsyncIterator[RunningServer]:
    """A server that asks for tokens."""
    tokens = tmp_path_factory.mktemp("guarded") / "tokens"
    tokens.write_text(f"trainer score,admin {SECRET}\nviewer admin {'v' * 20}\n")
    engine = EngineConfig(model=str(tiny_model_path()))
    telemetry = Telemetry(traces=spans)
    options = {"tokens": tokens, "admin": AdminConfig(engine=engine)}
    async with run_server(lambda _i: LocalExecutor(engine), None, telemetry, **options) as running:
        yield running


class Lines:
    """What was written to a file as a log."""

    def __init__(self, file: TextIO, writer: LogWriter) -> None:
        self._file = file
        self._writer = writer
        self._kept: str | None = None

    def getvalue(self) -> str:
        if self._kept is not None:
            return self._kept
        assert self._writer.flush(10.0)
        return Path(self._file.name).read_text()

    def keep(self) -> None:
        self._kept = self.getvalue()


@contextmanager
def logged(log_format: str) -> Iterator[Lines]:
    """What is written to standard error meanwhile, as `serve` sets it up."""
    kept, last_resort = sys.stderr, logging.lastResort
    with NamedTemporaryFile("w") as file:
        sys.stderr = cast(TextIO, file)
        try:
            lines = Lines(sys.stderr, configure_logs("info", log_format))
            # Loggers that are kept would outlive this test.
            structlog.configure(cache_logger_on_first_use=False)
            yield lines
            lines.keep()
        finally:
            sys.stderr, logging.lastResort = kept, last_resort
            structlog.reset_defaults()


def of_call(lines: Lines, request_id: str) -> list[dict[str, Any]]:
    """The lines of JSON that have a request's id."""
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in found if line.get("request_id") == request_id]


def context(request_id: str) -> context_pb2.RequestContext:
    return context_pb2.RequestContext(request_id=request_id, tags={"run": "7"})


def scores(request_id: str, **fields: Any) -> score_pb2.ScoreRequest:
    return score_pb2.ScoreRequest(
        groups=[group([1], [2, 3])], context=context(request_id), **fields
    )


async def test_each_call_is_a_line_when_it_ends_and_none_has_its_token(
    guarded: RunningServer, spans: FailedSpans
) -> None:
    stub = guarded.stub
    sampling = sample_pb2.SamplingParams(max_tokens=4000, ignore_eos=True)
    long = sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(token_ids=[1])], n=20, sampling=sampling
    )
    with logged("json") as lines:
        await collect(stub.Score(scores("r-answered"), metadata=METADATA))
        await failure(stub.Score(scores("r-refused", encoding=77), metadata=METADATA))
        for request_id, timeout in (("r-cancelled", None), ("r-late", 0.4)):
            long.context.CopyFrom(context(request_id))
            call = stub.Sample(long, metadata=METADATA, timeout=timeout)
            await call.read()
            if timeout is None:
                call.cancel()
            await call.code()
        for _ in range(100):  # the end of a cancelled call takes its time
            if of_call(lines, "r-cancelled") and of_call(lines, "r-late"):
                break
            await asyncio.sleep(0.05)
    for request_id, event, code in (
        ("r-answered", "answered", None),
        ("r-refused", "refused", None),
        ("r-cancelled", "cancelled", "CANCELLED"),
        ("r-late", ("cancelled", "refused"), ("DEADLINE_EXCEEDED", None)),
    ):
        (line,) = of_call(lines, request_id)
        assert line["event"] in (event if isinstance(event, tuple) else (event,)), line
        assert line.get("code") in (code if isinstance(code, tuple) else (code,)), line
        assert line["identity"] == "trainer"
        assert line["tags"] == {"run": "7"}
        assert line["rpc"] in ("Score", "Sample")
    assert SECRET not in lines.getvalue()
    assert spans.failed == ["INVALID_ARGUMENT", "CANCELLED", "DEADLINE_EXCEEDED"]


def test_lines_have_the_time_to_the_microsecond() -> None:
    moments = [1_700_000_000.0, 1_700_000_000.000001, 1_700_000_000.999999, 951_782_400.25, 1e9 + 1]
    clock = iter(moments)
    line_time = LineTime(lambda: next(clock))
    for moment in moments:
        text = line_time(None, "info", {})["timestamp"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
        assert abs(datetime.fromisoformat(text).timestamp() - moment) <= 1e-6


async def test_who_is_turned_away_is_named_without_a_token(guarded: RunningServer) -> None:
    wrong = (("authorization", "Bearer " + "w0rds" * 5),)
    viewer = (("authorization", "Bearer " + "v" * 20),)
    with logged("json") as lines:
        for metadata in (wrong, wrong, wrong, viewer, ()):
            await failure(guarded.stub.Score(scores("r"), metadata=metadata))
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    # Others write too: of a loop that was late, say.
    found = [line for line in found if line["event"] == "turned_away"]
    assert [(line["identity"], line["reason"]) for line in found] == [
        ("", "UNAUTHENTICATED"),
        ("viewer", "PERMISSION_DENIED"),
    ]
    assert {line["peer"] for line in found} == {"ipv4:127.0.0.1"}
    assert "w0rds" not in lines.getvalue()
    assert "vvvvv" not in lines.getvalue()


def test_strangers_do_not_fill_the_log() -> None:
    now = [0.0]
    refusal_log = RefusalLog(lambda: now[0])
    fault = Fault(Reason.UNAUTHENTICATED, "no")
    with capture_logs() as lines:
        for second in range(100):
            now[0] = second
            for caller in range(1000):
                refusal_log.note(f"peer {caller}", "", "/x", fault)
    named = {line["peer"] for line in lines}
    assert len(named) == 33
    assert "others" in named
    assert len(lines) == 2 * 33, "once a minute each"
    first = [line["calls"] for line in lines if line["peer"] == "peer 0"]
    assert first == [1, 60], "the second line counts what came in between"


def test_the_last_calls_of_a_stranger_are_told_when_another_comes() -> None:
    now = [0.0]
    away = RefusalLog(lambda: now[0])
    fault = Fault(Reason.UNAUTHENTICATED, "no")
    with capture_logs() as lines:
        for second in range(10):
            now[0] = second
            away.note("peer 1", "", "/x", fault)
        now[0] = 200.0
        away.note("peer 2", "", "/x", fault)
    assert [(line["peer"], line["calls"]) for line in lines] == [
        ("peer 1", 1),
        ("peer 1", 9),
        ("peer 2", 1),
    ]


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_a_bug_is_logged_without_the_token_or_what_was_asked(
    guarded: RunningServer, log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")  # with it structlog would print variables

    def broken() -> int:
        raise RuntimeError("here it broke")

    monkeypatch.setattr(guarded.pool, "new_call_id", broken)
    asked = score_pb2.ScoreRequest(groups=[group("asked in private", [2])])
    asked.context.request_id = "r-bug"
    with logged(log_format) as lines:
        code, _ = await failure(guarded.stub.Score(asked, metadata=METADATA))
    assert code is grpc.StatusCode.INTERNAL
    text = lines.getvalue()
    assert "here it broke" in text
    assert "guard.py" in text, "the traceback"
    assert "r-bug" in text
    assert SECRET not in text
    assert "asked in private" not in text


@pytest.mark.parametrize("given", ["\x1b[2Jgone", "\x1b]0; a title\x07", "right\u202eleft"])
async def test_a_request_id_does_nothing_to_the_terminal_that_shows_the_log(
    guarded: RunningServer, given: str
) -> None:
    with logged("console") as lines:
        await collect(guarded.stub.Score(scores(given), metadata=METADATA))
    (line,) = [line for line in lines.getvalue().split("\n") if "answered" in line]
    assert line.isprintable(), line
    assert "gone" in line or "a title" in line or "left" in line


async def test_a_bug_of_an_admins_rpc_has_the_request_id_that_the_caller_is_told(
    guarded: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_name: str) -> None:
        raise RuntimeError("here it broke")

    monkeypatch.setattr("scoring_service.rpc.models.Models.find", lambda _self, name: broken(name))
    target = guarded.target
    async with grpc.aio.insecure_channel(target) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        calls = (
            lambda: admin.GetWeights(admin_pb2.GetWeightsRequest(), metadata=METADATA),
            lambda: admin.Drain(admin_pb2.DrainRequest(), metadata=METADATA),
            lambda: guarded.stub.GetModelInfo(
                model_info_pb2.GetModelInfoRequest(), metadata=METADATA
            ),
        )
        for call in calls:
            with logged("json") as lines:
                code, status = await failure(call())
            assert code is grpc.StatusCode.INTERNAL
            (line,) = [json.loads(text) for text in lines.getvalue().splitlines()]
            assert line["event"] == "bug"
            assert line["identity"] == "trainer"
            assert "here it broke" in line["exception"]
            assert line["request_id"].encode() in status.SerializeToString()
            assert SECRET not in lines.getvalue()


async def test_a_bug_of_the_engine_is_a_line_of_the_servers_log() -> None:
    made = await Scripted(1).start()
    with logged("json") as lines:
        made.workers[0].on_event(BugReport("r-engine", "Traceback: here it broke"))
        await settled()
    await made.pool.drain(0.0)
    (line,) = of_call(lines, "r-engine")
    assert (line["event"], line["worker"]) == ("bug", 0)
    assert line["exception"] == "Traceback: here it broke"
