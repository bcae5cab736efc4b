"""What the examples share: arguments, the trainer's copy of a model, rows of logits, a plot."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from scoring_service.models import tiny_model_path

matplotlib.use("Agg")
from matplotlib import pyplot

logging.disable_progress_bar()


def arguments(description: str, **defaults: float) -> argparse.Namespace:
    """The command line: where the server is, the trainer's model, and numbers with defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--target", default="localhost:50051", help="the scoring server")
    parser.add_argument(
        "--model", default=str(tiny_model_path()), help="folder of the model that is served"
    )
    parser.add_argument("--plot", type=Path, help="where to write the loss curve (.png)")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


def trainer_of(folder: str, dtype: str) -> PreTrainedModel:
    """The model as a trainer has it, in a type of its own choice."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def completion_logits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Logits [T, V] of each completion: row i predicts its token i."""
    sequences = [
        torch.tensor([*p, *c], dtype=torch.long) for p, c in zip(prompts, completions, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    # Padded on the right, under a causal mask: what a token sees is what it would see alone.
    logits = model(input_ids=ids).logits
    return [
        logits[b, len(prompt) - 1 : len(prompt) - 1 + len(completion)]
        for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


@torch.no_grad()
def draw(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """A completion of each prompt from the trainer's own model, at temperature 1."""
    completions: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_tokens):
        sequences = [torch.tensor([*p, *c]) for p, c in zip(prompts, completions, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        logits = model(input_ids=ids).logits.float()
        for b, sequence in enumerate(sequences):
            token = torch.multinomial(logits[b, len(sequence) - 1].softmax(0), 1)
            completions[b].append(int(token))
    return completions


def report(losses: Sequence[float], title: str, zero: str, plot: Path | None) -> None:
    """Print the mean loss of the first and of the last fifth, and draw the curve down to zero."""
    fifth = max(len(losses) // 5, 1)
    first, last = sum(losses[:fifth]) / fifth, sum(losses[-fifth:]) / fifth
    print(f"{title}: {first:.4f} at first, {last:.4f} at last")
    if plot is None:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(losses, color="tab:blue", linewidth=1, alpha=0.5, label="each step")
    width = max(len(losses) // 12, 1)
    windows = [losses[max(i - width, 0) : i + width + 1] for i in range(len(losses))]
    label = f"mean of {2 * width + 1} steps"
    axes.plot([sum(w) / len(w) for w in windows], color="tab:blue", linewidth=2, label=label)
    axes.set(title=title, xlabel="step", ylabel=f"nats (0 = {zero})", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=120)
    print(f"the curve: {plot}")
