"""Results as tables and coloured text."""

import math
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from scoring_client.cli.colours import legend, style_of
from scoring_client.cli.visible import visible
from scoring_client.values.model_info import ModelInfo, ServedModel
from scoring_client.values.results import CompletionScores, CompletionTopK
from scoring_client.values.samples import Sample

BAR_WIDTH = 24


def total_logprob(scores: CompletionScores) -> float:
    """Return the log-prob (nats) of a completion as a whole."""
    return math.fsum(scores.logprobs.tolist())


def probability(logprob: float) -> str:
    """Return exp(logprob) for people: as a percentage, or as a power of ten when it is tiny."""
    if logprob == -math.inf:
        return "0"
    percent = 100 * math.exp(logprob)
    if percent >= 0.01:
        return f"{percent:.2f} %"
    return f"10^{logprob / math.log(10):.1f}"


def token_count(count: int) -> str:
    """Return a number of tokens in words."""
    return "1 token" if count == 1 else f"{count:,} tokens"


def token_map(scores: CompletionScores, *, numbers: bool) -> Text:
    """Return a completion's text with its tokens set apart and coloured by log-prob.

    Args:
        scores: With tokens.
        numbers: Write the log-prob behind each token, for where there is no colour.
    """
    line = Text("│")
    for token, logprob in zip(scores.tokens or (), scores.logprobs.tolist(), strict=True):
        line.append(visible(token), style_of(logprob))
        line.append(f" {logprob:.2f}│" if numbers else "│")
    return line


def token_table(scores: CompletionScores) -> Table:
    """Return a row for each token: log-prob, probability, rank, and what truncation made of it."""
    columns = ["row", "token", "id", "log-prob", "probability", "rank"]
    processed = None
    if scores.processed_logprobs is not None:
        columns.append("after truncation")
        processed = scores.processed_logprobs.tolist()
    table = _table(*columns, left=(1,))
    ranks = None if scores.ranks is None else scores.ranks.tolist()
    for index, token in enumerate(scores.tokens or ()):
        logprob = float(scores.logprobs[index])
        table.add_row(
            str(scores.rows[index]),
            Text(visible(token), style_of(logprob)),
            str(scores.token_ids[index]),
            f"{logprob:.3f}",
            probability(logprob),
            "" if ranks is None else f"{ranks[index]:,}",
            *([] if processed is None else [f"{processed[index]:.3f}"]),
        )
    return table


def completion_table(texts: Sequence[str], completions: Sequence[CompletionScores]) -> Table:
    """Return a row for each completion: log-prob in all and on average."""
    table = _table("completion", "tokens", "log-prob", "probability", "log-prob / token", left=(0,))
    for text, scores in zip(texts, completions, strict=True):
        total, count = total_logprob(scores), len(scores.logprobs)
        table.add_row(
            Text(visible(text)),
            f"{count:,}",
            f"{total:.3f}",
            probability(total),
            f"{total / count:.3f}",
        )
    return table


def scored_completion(
    title: str, scores: CompletionScores, console: Console, *, table: bool
) -> RenderableType:
    """Return one completion: its coloured text and, if wanted, its table.

    Args:
        title: What stands above it.
        scores: With tokens.
        console: Where it goes; without colours the numbers stand in the text, or in the table.
        table: Whether the table is wanted.
    """
    coloured = console.color_system is not None and not console.no_color
    parts: list[RenderableType] = [
        Text(title, "bold"),
        token_map(scores, numbers=not coloured and not table),
    ]
    if coloured:
        parts.append(legend())
    if table:
        parts.append(token_table(scores))
    return Group(*parts)


def next_token_table(topk: CompletionTopK, row: int, *, truncated: bool) -> Table:
    """Return the most likely tokens of one row, with bars, and what is left.

    Args:
        topk: With tokens.
        row: Which.
        truncated: Say how many tokens truncation keeps.
    """
    table = _table("rank", "token", "id", "log-prob", "probability", "", left=(1, 5))
    tokens = topk.top_tokens[row] if topk.top_tokens is not None else ()
    logprobs = topk.top_logprobs[row].tolist()
    for rank, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True), start=1):
        table.add_row(
            str(rank),
            Text(visible(token), style_of(logprob)),
            str(topk.top_token_ids[row, rank - 1]),
            f"{logprob:.3f}",
            probability(logprob),
            _bar(logprob),
        )
    tail = float(topk.log_tail_masses[row])
    table.add_section()
    table.add_row("", "all others", "", f"{tail:.3f}", probability(tail), _bar(tail))
    if truncated:
        table.caption = f"truncation keeps {token_count(int(topk.support_sizes[row]))}"
    return table


def topk_table(topk: CompletionTopK, *, truncated: bool) -> Table:
    """Return a row for each token: how likely it was, and what was likelier.

    Args:
        topk: With tokens and ranks.
        truncated: Say how many tokens truncation keeps.
    """
    columns = ["row", "token", "log-prob", "probability", "rank", "most likely", "others"]
    table = _table(*columns, *(["kept"] if truncated else []), left=(1, 5))
    ranks = [] if topk.ranks is None else topk.ranks.tolist()
    for index, (token, rank) in enumerate(zip(topk.tokens or (), ranks, strict=True)):
        logprob = float(topk.logprobs[index])
        likely = Text()
        tops = topk.top_tokens[index] if topk.top_tokens is not None else ()
        for top, top_logprob in zip(tops, topk.top_logprobs[index].tolist(), strict=True):
            likely.append("  " if likely else "")
            likely.append(visible(top), style_of(top_logprob))
            likely.append(f" {100 * math.exp(top_logprob):.1f}")
        table.add_row(
            str(topk.rows[index]),
            Text(visible(token), style_of(logprob)),
            f"{logprob:.3f}",
            probability(logprob),
            f"{rank:,}",
            likely,
            probability(float(topk.log_tail_masses[index])),
            *([f"{topk.support_sizes[index]:,}"] if truncated else []),
        )
    return table


def sample_footer(sample: Sample, logprob: float, tokens: int) -> Text:
    """Return a line about a sample that ended.

    Args:
        sample: Its last slice.
        logprob: Log-prob (nats) of all its tokens.
        tokens: Number of all its tokens.
    """
    if sample.finish_reason == "length":
        why = "max_tokens reached"
    elif isinstance(sample.matched_stop, str):
        why = f"stopped at {sample.matched_stop!r}"
    else:
        why = f"stopped by token {sample.matched_stop}"
    return Text(
        f"[sample {sample.sample_index}: {token_count(tokens)}, log-prob {logprob:.2f}, {why}, "
        f"seed {sample.seed}]",
        "dim",
    )


def info_table(info: ModelInfo, models: Sequence[ServedModel]) -> Table:
    """Return what a server says of a model, and which others it has."""
    limits = info.limits
    bos = "none" if info.bos_token_id is None else str(info.bos_token_id)
    none = f"none: {info.tokenizer_reason}" if info.tokenizer_reason else "none"
    config = ", ".join(f"{name} = {value}" for name, value in info.generation_config.items())
    rows = {
        "model": info.name,
        "architecture": f"{info.architecture}, {info.parameter_count:,} parameters",
        "vocabulary": f"{info.vocab_size:,} rows, tokenizer {info.tokenizer_size:,}",
        "special tokens": f"bos {bos}, eos {', '.join(map(str, info.eos_token_ids)) or 'none'}",
        "weights": f"version {info.weight_version}, digest {info.weights_digest}",
        "tokenizer digest": info.tokenizer_digest or none,
        "arithmetic": f"{info.dtype}, residuals {info.residual_dtype or info.dtype}, "
        f"head {info.head_dtype}, {info.backend}, "
        f"{'deterministic' if info.deterministic else 'not deterministic'}",
        "numerics id": info.numerics_id,
        "path": f"{info.path} ({info.path_reason})" if info.path_reason else info.path,
        "chunk size": f"{info.chunk_size:,}" if info.chunk_size else "never cut",
        "generation config": config or "none",
        "unsupported in it": ", ".join(info.unsupported_generation_settings) or "nothing",
        "limits": f"{limits.max_sequence_tokens:,} tokens a sequence, k up to {limits.max_k:,}, "
        f"{limits.max_candidates:,} candidates, {limits.max_request_bytes:,} bytes a request",
        "queue": f"{limits.max_queue_tokens:,} tokens may wait; "
        f"{limits.preferred_tokens_per_call:,} are preferred in a call",
        "server": f"{info.server_version}, contract revision {info.contract_revision}",
        "models served": ", ".join(
            model.name if model.ready else f"{model.name} (not ready)" for model in models
        ),
    }
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _table(*columns: str, left: tuple[int, ...]) -> Table:
    table = Table()
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index in left else "right", overflow="fold")
    return table


def _bar(logprob: float) -> str:
    eighths = round(math.exp(logprob) * BAR_WIDTH * 8)
    partial: str = ("", *"▏▎▍▌▋▊▉")[eighths % 8]
    return "█" * (eighths // 8) + partial
