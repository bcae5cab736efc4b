"""The command line against the toy server: what people see, and what their shells see."""

import json
import math
import subprocess
import sys
import threading

import grpc
import pytest
import safetensors.torch
import torch

from scoring_client.cli.app import main
from tests.client import toy_model
from tests.client.toy_server import Fault, ToyServer
from tests.client.toy_weights import WeightsServer


@pytest.fixture(scope="module")
def server():
    with ToyServer() as running:
        yield running


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch, server):
    monkeypatch.setenv("SCORING_TARGET", server.target)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def logprob(prompt, text, temperature=1.0):
    context, tokens = toy_model.encode(prompt, add_special_tokens=True), list(text.encode())
    return math.fsum(
        float(toy_model.row(context + tokens[:i], temperature=temperature).logprobs_V[token])
        for i, token in enumerate(tokens)
    )


def lines_with(text, out):
    return [line for line in out.splitlines() if text in line]


def test_tokenize_shows_ids(run):
    status, out, err = run("tokenize", "import", " np", "--no-special-tokens")
    assert (status, err) == (0, "")
    for text in ("import", " np"):
        assert " ".join(map(str, text.encode())) in out
    status, out, _ = run("tokenize", "☃", "--json")
    assert status == 0
    ids = toy_model.encode("☃", add_special_tokens=True)
    assert json.loads(out) == [{"text": "☃", "token_ids": list(ids)}]
    assert run("tokenize")[0] == 2


def test_score_shows_tokens_and_contrasts_completions(run):
    prompt, completions = "import numpy as", [" np", " banana", "☃"]
    arguments = [part for text in completions for part in ("--completion", text)]
    status, out, err = run("score", "--prompt", prompt, *arguments)
    assert status == 0
    assert err == ""
    totals = [logprob(prompt, text) for text in completions]
    assert f"import·numpy·as → ·np  log-prob {totals[0]:.3f}, 3 tokens" in out
    context = toy_model.encode(prompt, add_special_tokens=True)
    row = toy_model.row(context)
    (first,) = [line for line in lines_with("│ ·     │  32 │", out) if "│   0 │" in line][:1]
    assert f"{row.logprobs_V[32]:.3f}" in first
    assert f"│ {row.rank(32):>4} │" in first
    for text, total in zip(completions, totals, strict=True):
        (line,) = lines_with(f"│ {text.replace(' ', '·')} ", out)[-1:]
        assert f"{total:.3f}" in line
    best, second, third = sorted(range(3), key=lambda i: -totals[i])
    comparisons = lines_with("as likely as", out)
    assert len(comparisons) == 2
    assert comparisons[0].startswith(f"{completions[best]!r} is ")
    assert (
        f"as {completions[second]!r} ({totals[best] - totals[second]:.2f} nats)" in comparisons[0]
    )
    assert f"as {completions[third]!r} ({totals[best] - totals[third]:.2f} nats)" in comparisons[1]


@pytest.mark.parametrize("command", ["score", "topk", "sample", "sample --json"])
def test_a_call_has_tags_and_an_id(run, server, command):
    asked = (*command.split(), "--prompt", "ab")
    completion = ("--completion", "c") if command == "score" else ()
    labels = ("--tag", "team=grpo", "--tag", "run=a=b", "--request-id", "run-7.step-3")
    status, _, err = run(*asked, *completion, *labels)
    assert status == 0, err
    context = server.requests[-1].context
    assert dict(context.tags) == {"team": "grpo", "run": "a=b"}
    assert context.request_id == "run-7.step-3"
    for wrong in ("team", "=grpo"):
        status, _, err = run(*asked, *completion, "--tag", wrong)
        assert (status, err) == (2, f"error: --tag {wrong}: expected NAME=VALUE\n")


def test_score_of_a_whole_text_begins_at_the_beginning(run):
    status, out, _ = run("score", "ab cd")
    assert status == 0
    assert (
        f"beginning of the sequence → ab·cd  log-prob {logprob('', 'ab cd'):.3f}, 5 tokens" in out
    )
    assert "│a│b│·│c│d│" in out


def test_score_of_a_whole_text_without_a_beginning_token(run):
    with ToyServer(bos=False) as server:
        status, out, _ = run("score", " ab cd", "--target", server.target)
        assert status == 0
        assert "·ab → ·cd  log-prob" in out
        group = server.requests[0].groups[0]
        assert (group.prompt.text, group.completions[0].text) == (" ab", " cd")
        status, _, err = run("score", "ab", "--target", server.target)
        assert status == 2
        assert "needs two words" in err


def test_a_long_text_has_its_table_when_asked(run):
    text = "abcd" * 20
    assert "┃ row" not in run("score", text)[1]
    # Without colour and without a table, the numbers stand behind the tokens.
    first = toy_model.row([toy_model.BOS]).logprobs_V[97]
    assert f"│a {first:.2f}│b" in run("score", text)[1].replace("\n", "")
    assert "┃ row" in run("score", text, "--table")[1]
    assert "┃ row" not in run("score", "ab", "--no-table")[1]


@pytest.mark.parametrize(
    ("prompt", "completion", "hint"),
    [
        ("import numpy as", "np", "did you mean ' np'?"),
        ("x = 3.", "Then", "did you mean ' Then'?"),
        ("import numpy as ", "np", "the prompt 'import numpy as' and the completion ' np'?"),
        ("import numpy as", " np", None),
        ("f(", "x", None),
        ("line\n", "next", None),
        ("name", "(", None),
        ("你好", "世界", None),
        ("", "np", None),
    ],
)
def test_hints_about_the_leading_space(run, prompt, completion, hint):
    for command in ("score", "topk"):
        status, out, err = run(command, "--prompt", prompt, "--completion", completion)
        assert status == 0
        assert "hint" not in out
        if hint is None:
            assert err == ""
        else:
            assert hint in err


def test_topk_after_a_prompt(run):
    status, out, _ = run("topk", "--prompt", "x =", "-k", "4")
    assert status == 0
    row = toy_model.row(toy_model.encode("x =", add_special_tokens=True))
    ids, values = row.top(4)
    for rank, (token, value) in enumerate(zip(ids, values, strict=True), start=1):
        (line,) = lines_with(f"│ {token:>3} │", out)
        assert f"│    {rank} │" in line
        assert f"{value:.3f}" in line
        assert f"{100 * math.exp(value):.2f} %" in line
    bars = [line.count("█") for line in out.splitlines() if "█" in line]
    assert bars[0] == round(math.exp(values[0]) * 24 * 8) // 8
    (tail,) = lines_with("all others", out)
    assert f"{row.log_tail_mass(4):.3f}" in tail


def test_topk_takes_the_prompt_as_an_argument(run):
    assert run("topk", "x =")[1] == run("topk", "--prompt", "x =", "-k", "10")[1]


def test_topk_at_every_position(run):
    status, out, _ = run("topk", "--prompt", "x =", "--completion", " ab", "-k", "2")
    assert status == 0
    context = toy_model.encode("x =", add_special_tokens=True)
    for index, token in enumerate(b" ab"):
        row = toy_model.row(context + list(b" ab"[:index]))
        (line,) = lines_with(f"│   {index} │", out)
        assert f"{row.logprobs_V[token]:.3f}" in line
        assert f"{100 * math.exp(row.top(2)[1][0]):.1f}" in line


def test_sample(run):
    status, out, _ = run("sample", "--prompt", "ab", "--max-tokens", "6", "-n", "3", "--seed", "5")
    assert status == 0
    prompt = toy_model.encode("ab", add_special_tokens=True)
    footers = lines_with("[sample", out)
    assert len(footers) == 3
    for index, footer in enumerate(footers):
        tokens = toy_model.draw_sample(prompt, 5, index, 6)
        total = math.fsum(
            float(toy_model.row(prompt + tokens[:i]).logprobs_V[t]) for i, t in enumerate(tokens)
        )
        expected = (
            f"[sample {index}: {len(tokens)} tokens, log-prob {total:.2f}, max_tokens reached"
        )
        assert footer.startswith(expected)
        assert footer.endswith("seed 5]")


def test_sampled_text_appears_as_it_is_drawn():
    # In a process of its own, whose output is read while the server still draws.
    with ToyServer(max_slice=1, step_delay=0.25) as slow:
        code = "import sys; from scoring_client.cli.app import main; sys.exit(main(sys.argv[1:]))"
        arguments = ["sample", "ab", "--max-tokens", "60", "--target", slow.target]
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, *arguments], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout.read(2) == b"ab"
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(run):
    status, out, _ = run("score", "--prompt", "a", "--completion", "\x1b[31m\x07\u202e [b]x[/b]")
    assert status == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert "␛[31m␇" in out
    # And what looks like markup is text.
    assert "[b]x[/b]" in out.replace("\n", "")
    # The toy model draws control characters all the time.
    status, out, _ = run("sample", "a", "--max-tokens", "200", "--ignore-eos")
    assert not {chr(code) for code in range(32)} - {"\n", "\t"} & set(out) - {"\n", "\t"}
    assert "\x1b" not in out


def test_colours_only_where_there_is_a_terminal(run, monkeypatch):
    plain = run("score", "ab cd")[1]
    assert "\x1b[" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = run("score", "ab cd")[1]
    assert "\x1b[30;48;5;" in coloured
    assert "≥ 50 %" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    without = run("score", "ab cd")[1]
    assert "48;5;" not in without
    assert "│a│b│·│c│d│" in without


def test_info(run):
    status, out, _ = run("info")
    assert status == 0
    for said in (
        "ToyForCausalLM, 1,234 parameters",
        "258 rows",
        "bos 256, eos 257",
        "plain (a toy)",
        "top_k = 20",
        "4,194,304 bytes a request",
        "models served",
    ):
        assert said in out


# JSON


def as_json(answer):
    status, out, _ = answer
    assert status == 0
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_score_as_json(run):
    said = as_json(
        run("score", "--prompt", "ab", "--completion", "c", "--completion", " d", "--json")
    )
    assert said["prompt"] == "ab"
    assert [completion["text"] for completion in said["completions"]] == ["c", " d"]
    first = said["completions"][0]
    assert first["total_logprob"] == pytest.approx(logprob("ab", "c"))
    assert first["token_ids"] == [99]
    assert first["tokens"] == ["c"]
    assert first["rows"] == [0]
    assert first["provenance"]["model"] == "toy"
    assert first["processing"]["sources"]["temperature"] == "neutral"
    assert said["contrasts"][0]["nats"] == pytest.approx(
        abs(logprob("ab", "c") - logprob("ab", " d"))
    )
    assert said["usage"]["completion_tokens"] == 10


def test_topk_as_json_even_with_infinities(run):
    said = as_json(run("topk", "ab", "-k", "258", "--json"))
    assert len(said["top_logprobs"][0]) == 258
    assert said["log_tail_masses"] == ["-Infinity"]
    assert said["completion"] is None


def test_sample_as_json(run):
    said = as_json(run("sample", "ab", "--max-tokens", "3", "-n", "2", "--seed", "9", "--json"))
    assert [sample["seed"] for sample in said["samples"]] == [9, 9]
    assert said["samples"][1]["token_ids"] == toy_model.draw_sample(
        toy_model.encode("ab", add_special_tokens=True), 9, 1, 3
    )


def test_info_as_json(run):
    said = as_json(run("info", "--json"))
    assert said["vocab_size"] == 258
    assert said["models"] == [{"name": "toy", "ready": True}]


# Options


def test_options_reach_the_server(run, server):
    run(
        *["sample", "a", "--max-tokens", "2", "--temperature", "0.5", "--top-k", "7"],
        *["--top-p", "0.5", "--min-p", "0.25", "--stop", "-x", "--stop", " y", "--min-tokens", "1"],
        *["--ignore-eos", "--defaults", "model", "--model", "toy", "--token", "secret"],
    )
    request = server.requests[-1]
    (prompt,) = request.prompts
    assert prompt.text == "a"
    assert list(prompt.sampling.stop) == ["-x", " y"]
    assert prompt.sampling.min_tokens == 1
    assert prompt.sampling.ignore_eos
    processing = request.sampling.processing
    assert (processing.temperature, processing.top_k) == (0.5, 7)
    assert (processing.top_p, processing.min_p) == (0.5, 0.25)
    assert processing.defaults != 0
    assert request.model == "toy"
    assert server.metadata[-1]["authorization"] == "Bearer secret"


def test_temperature_of_scores(run):
    _, out, _ = run("score", "--prompt", "a", "--completion", "b", "--temperature", "2")
    assert f"log-prob {logprob('a', 'b', 2.0):.3f}, 1 token\n" in out


def test_texts_may_begin_with_a_hyphen(run, server):
    status, _, err = run("score", "--prompt", "-a", "--completion", "--b")
    assert (status, err) == (0, "")
    assert server.requests[-1].groups[0].completions[0].text == "--b"


# Errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["score"], "give a text, or --prompt with --completion"),
        (["score", "--prompt", "a"], "give a text, or --prompt with --completion"),
        (["score", "--completion", "a"], "give a text, or --prompt with --completion"),
        (["score", "a b", "--prompt", "c", "--completion", "d"], "not both"),
        (["topk"], "give a prompt"),
        (["sample", "a", "--prompt", "b"], "give a prompt"),
        (["score", "a b", "--temperature", "hot"], "--temperature"),
        (["score", "a b", "--teperature", "1"], "--teperature"),
        (["nonsense"], "nonsense"),
        (["score", "a b", "--model", "gpt-9"], "there is: toy"),
        (["sample", "a", "-n", "0"], "0 is not in [1, 65536]"),
        (["score", "--prompt", "a", "--completion", ""], "groups[0].completions[0]: no token"),
        (["info", "--root-certificates", "/nowhere.pem"], "/nowhere.pem"),
    ],
)
def test_bad_input_is_one_message_and_status_2(run, arguments, complaint):
    status, out, err = run(*arguments)
    assert status == 2
    assert complaint in err
    assert "Traceback" not in err
    assert out == ""


def test_no_server_is_status_3(run):
    status, out, err = run("score", "a b", "--target", "127.0.0.1:1", "--timeout", "5")
    assert status == 3
    assert out == ""
    assert err.startswith("error: ")
    assert "127.0.0.1:1" in err
    assert "nobody listens at 127.0.0.1:1: is the server running" in err
    assert "--target or SCORING_TARGET names another" in err


def test_errors_name_options_and_no_arguments_of_python(run):
    """Where the Python client names max_attempts=, timeout= or an iterator."""
    asked = ("score", "--prompt", "a", "--completion", "b", "--completion", "c")
    status, _, err = run(*asked, "--target", "127.0.0.1:1")
    assert status == 3
    assert "gave up after 2 attempts in" in err
    assert "s: ask again when the server is back. --target or" in err
    late = Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "late", "DEADLINE_EXCEEDED", after_results=1)
    with ToyServer(faults=[late, late]) as server:
        status, _, err = run(*asked, "--target", server.target)
    assert (status, err) == (
        3,
        "error: late (1 of 2 items unfinished); what is finished (1 of 2 items) is lost\n",
    )
    with ToyServer(hold=threading.Event()) as server:
        status, _, err = run(*asked, "--target", server.target, "--timeout", "0.3")
    assert status == 3
    assert "2 of 2 items unfinished; raise --timeout or add replicas" in err


@pytest.mark.parametrize("command", [("info",), ("weights",)])
def test_tokens_and_certificates_are_looked_at_before_anything_is_sent(run, tmp_path, command):
    far = ("--target", "trainer.example.org:50051")
    status, _, err = run(*command, *far, "--token", "secret")
    assert status == 2
    assert "the token would travel in plain text to trainer.example.org:50051" in err
    assert "--allow-plaintext-token" in err
    status, _, err = run(*command, "--root-certificates", str(tmp_path / "none.pem"))
    assert status == 2
    assert err == f"error: --root-certificates {tmp_path}/none.pem: No such file or directory\n"
    status, _, err = run(*command, "--client-key", __file__)
    assert status == 2
    assert "client_certificate and client_key go together" in err


def test_tls_where_the_server_has_none_is_status_3(run, server):
    status, _, err = run("info", "--target", server.target, "--tls", "--token", "t")
    assert status == 3
    assert "speaks no TLS" in err
    assert "names another" not in err


def test_a_bug_of_the_server_is_status_1(run):
    fault = Fault(grpc.StatusCode.INTERNAL, "a bug", "INTERNAL_ERROR")
    with ToyServer(faults=[fault]) as server:
        status, _, err = run("topk", "ab", "--target", server.target)
        request_id = server.requests[0].context.request_id
    assert status == 1
    assert f"error: a bug (request {request_id})" in err


def test_help_lists_the_commands(run):
    status, out, _ = run("--help")
    assert status == 0
    for command in ("score", "topk", "sample", "info"):
        assert command in out
    status, out, _ = run("sample", "--help")
    assert status == 0
    assert "--max-tokens" in out
    assert "SCORING_TARGET" in out


def test_weights_are_shown_pushed_and_read_by_the_server(run, tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}
    specs = {"a": ("bfloat16", (3,), ""), "b": ("float32", (2, 3), "")}
    file = tmp_path / "new.safetensors"
    safetensors.torch.save_file(tensors, file)
    with WeightsServer(specs, version=4) as admin:
        status, out, _ = run("weights", "--target", admin.target)
        assert status == 0
        assert "4" in lines_with("version", out)[0]
        status, out, err = run(
            "weights", "push", str(file), "--version", "5", "--target", admin.target
        )
        assert status == 0, err
        assert "version 5 answers" in out
        assert admin.tensors["b"] == tensors["b"].numpy().tobytes()
        at = ("--target", admin.target, "--json")
        status, out, _ = run("weights", "update", "/models/new", "--version", "6", *at)
        assert json.loads(out)["phase"] == "committed"
        assert run("weights", "update", "/nowhere", "--version", "7", *at)[0] != 0
        assert json.loads(run("flush-cache", *at)[1]) == {"pages_freed": 12}
        assert json.loads(run("drain", *at)[1]) == {"drained": True}
        assert json.loads(run("resume", *at)[1]) == {"resumed": True}
        assert (
            run("weights", "push", str(tmp_path / "no.safetensors"), "--version", "9", *at)[0] == 2
        )
        (tmp_path / "model.bin").write_bytes(b"PK not tensors" * 9)
        status, _, err = run("weights", "push", str(tmp_path / "model.bin"), "--version", "9", *at)
        assert (status, "is no .safetensors file" in err) == (2, True)
