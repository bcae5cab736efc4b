"""On-policy distillation: a small student learns from a served teacher on what it writes itself.

Each step the student writes, and one request gives the teacher's top-K at every row, its exact
tail, and its log-probs at the student's own top-C. The loss is the generalised Jensen-Shannon
divergence on the union of the two lists and the tail.
"""

from __future__ import annotations

import torch
from common import arguments, completion_logits, draw, report
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from scoring_client import Completion, PromptGroup, ScoringClient
from scoring_client.losses import generalized_js, teacher_rows

PROMPTS = ["import numpy as", "for i in range", "def __init__(self", "Return the", "if x is", "The"]


def student_of(vocab: int) -> LlamaForCausalLM:
    """A student of two layers that knows nothing."""
    torch.manual_seed(0)
    shape = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, **shape, **heads)
    )


def main() -> None:
    """Write, ask, learn."""
    options = arguments(
        __doc__,
        steps=120,
        copies=4,
        max_tokens=12,
        k=32,
        student_k=16,
        alpha=0.5,
        learning_rate=3e-3,
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS] * options.copies
    losses = []
    with ScoringClient(options.target) as client:
        student = student_of(client.wait_ready().vocab_size)
        optimizer = torch.optim.AdamW(student.parameters(), lr=options.learning_rate)
        for step in range(options.steps):
            completions = draw(student, prompts, options.max_tokens)
            logits = completion_logits(student, prompts, completions)
            candidates = [rows.detach().topk(options.student_k).indices for rows in logits]
            groups = [
                PromptGroup(prompt, [Completion(tokens, candidates=ids)])
                for prompt, tokens, ids in zip(prompts, completions, candidates, strict=True)
            ]
            scores = client.topk_logprobs(groups, options.k)
            teacher = teacher_rows(scores.completions(), candidates)
            loss = generalized_js(torch.cat(logits), teacher, options.alpha)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % 20 == 0:
                print(f"step {step}: {loss.item():.4f} nats (at most 0.6931)")
    title = "generalised Jensen-Shannon divergence"
    report(losses, title, "the student is the teacher", options.plot)


if __name__ == "__main__":
    main()
