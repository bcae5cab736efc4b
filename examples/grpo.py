"""GRPO in miniature: groups of samples, scored, replayed in the trainer; clipped gradient steps.

The server draws under top-k and top-p; the trainer applies the same truncation to its own logits
before it compares, so that before the first step every importance ratio is 1 to rounding.
"""

from __future__ import annotations

import torch
from common import arguments, completion_logits, trainer_of

from scoring_client import PromptGroup, ScoringClient
from scoring_client.replay import importance_ratios, mismatch_kl, processed_logprobs, row_settings

SAMPLING = {"temperature": 0.9, "top_k": 20, "top_p": 0.95}
PROMPTS = ["def parse(", "import numpy as", "for i in range(", "The following example"]
CLIP = 0.2


def reward(text: str) -> float:
    """Any number from the text; here, how much of it stands in round brackets or is a colon."""
    return sum(text.count(mark) for mark in "():") / max(len(text), 1)


def main() -> None:
    """Sample, compare, train."""
    options = arguments(__doc__, group_size=6, max_tokens=24, steps=4, learning_rate=1e-4, seed=0)
    with ScoringClient(options.target) as client:
        dtype = client.wait_ready().dtype
        results = client.sample(
            PROMPTS,
            n=options.group_size,
            max_tokens=options.max_tokens,
            seed=options.seed,
            return_text=True,
            **SAMPLING,
        )
        # What is known of a sample can be asked again, also of samples drawn elsewhere.
        groups = [
            PromptGroup(prompt, [sample.token_ids for sample in group])
            for prompt, group in zip(PROMPTS, results, strict=True)
        ]
        scores = client.score(groups, processed_logprobs=True, keep_realised=True, **SAMPLING)
    samples = list(results.samples())
    prompts = [sample.prompt_token_ids.tolist() for sample in samples]
    completions = [sample.token_ids.tolist() for sample in samples]
    lengths = torch.tensor([len(tokens) for tokens in completions])
    labels = torch.cat([torch.tensor(tokens) for tokens in completions])
    sampler = torch.cat([torch.from_numpy(sample.processed_logprobs) for sample in samples])
    scored = torch.cat([torch.from_numpy(each.processed_logprobs) for each in scores.completions()])
    print(f"{len(samples)} samples of {len(sampler)} tokens")
    print(f"scored again: at most {(scored - sampler).abs().max().item():.1e} nats apart")

    # Advantages: each sample's reward against its group's.
    rewards = torch.tensor([[reward(sample.text) for sample in group] for group in results])
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = (centred / (rewards.std(dim=1, keepdim=True) + 1e-6)).reshape(-1)
    advantages = advantages.repeat_interleave(lengths)

    model = trainer_of(options.model, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    settings = row_settings([sample.processing for sample in samples], lengths.tolist())
    for step in range(options.steps):
        logits = torch.cat(completion_logits(model, prompts, completions))
        trainer = processed_logprobs(logits, labels, **settings)
        ratios = importance_ratios(trainer, sampler)
        if step == 0:
            untruncated = processed_logprobs(
                logits, labels, temperature=SAMPLING["temperature"]
            ).detach()
            print(f"mismatch KL with replay: {mismatch_kl(trainer.detach(), sampler).k3:.2e}")
            print(f"mismatch KL without: {mismatch_kl(untruncated, sampler).k3:.2e}")
        clipped = ratios.clamp(1 - CLIP, 1 + CLIP)
        loss = -torch.minimum(ratios * advantages, clipped * advantages).mean()
        print(
            f"step {step}: loss {loss.item():+z.5f}, ratios {ratios.min().item():.5f} to "
            f"{ratios.max().item():.5f}, {(ratios != clipped).float().mean().item():.0%} clipped"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
