"""Self-distillation from demonstrations (SDFT) with soft top-K cross-entropy.

Teacher and student begin as the same model. The teacher, served, has a demonstration before the
question; the student, in this process, has the question alone, writes an answer, and is trained
towards the teacher's top-K at every token of it (Shenfeld et al. 2026).
"""

from __future__ import annotations

import torch
from common import arguments, completion_logits, draw, report, trainer_of
from transformers import AutoTokenizer

from scoring_client import ScoringClient
from scoring_client.losses import soft_cross_entropy, teacher_rows

DEMONSTRATIONS = [
    ("The name of the module is", " scoring, and it returns a tensor."),
    ("Return the length of", " the shortest path."),
    ("The default value is", " forty-two."),
    ("Raise an error if", " the teacher is asleep."),
    ("This function returns", " a list of green apples."),
    ("Note that the argument", " must be a polite string."),
]


def main() -> None:
    """Write, ask with the demonstration, learn without it."""
    options = arguments(__doc__, steps=60, max_tokens=10, k=20, learning_rate=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    questions = [tokenizer.encode(question) for question, _ in DEMONSTRATIONS]
    shown = [tokenizer.encode(f"{q}{a}\n\n{q}{a}\n\n{q}") for q, a in DEMONSTRATIONS]
    torch.manual_seed(0)
    student = trainer_of(options.model, "float32")
    optimizer = torch.optim.AdamW(student.parameters(), lr=options.learning_rate, weight_decay=0.0)
    losses, entropies = [], []
    with ScoringClient(options.target) as client:
        client.wait_ready()
        for step in range(options.steps):
            answers = draw(student, questions, options.max_tokens)
            scores = client.topk_logprobs(
                [(prompt, [answer]) for prompt, answer in zip(shown, answers, strict=True)],
                options.k,
            )
            teacher = teacher_rows(scores.completions())
            weights = teacher.soft_targets()
            logits = torch.cat(completion_logits(student, questions, answers))
            loss = soft_cross_entropy(logits, teacher.token_ids, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            entropies.append(-(weights * weights.log()).sum(dim=1).mean().item())
            if step % 10 == 0:
                print(f"step {step}: {losses[-1]:.3f}, the teacher's entropy {entropies[-1]:.3f}")
    # The teacher's entropy is as low as the cross-entropy can go.
    report(
        [loss - least for loss, least in zip(losses, entropies, strict=True)],
        "soft cross-entropy above the teacher's entropy",
        "all of it learnt",
        options.plot,
    )


if __name__ == "__main__":
    main()
