"""GRPO in miniature: groups of samples, scored, replayed in the trainer; clipped gradient steps;
the new weights pushed, and the next groups drawn from them.

The server draws under top-k and top-p; the trainer applies the same truncation to its own logits
before it compares, so that before the first step on a batch every importance ratio is 1 to
rounding: the server's, where it serves another type than the trainer's float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from common import arguments, completion_logits, trainer_of
from torch import Tensor
from transformers import PreTrainedModel

from scoring_client import AdminClient, Expect, PromptGroup, Sample, SamplePrompt, ScoringClient
from scoring_client.replay import importance_ratios, mismatch_kl, processed_logprobs, row_settings

SAMPLING = {"temperature": 0.9, "top_k": 20, "top_p": 0.95}
PROMPTS = ["def parse(", "import numpy as", "for i in range(", "The following example"]
CLIP = 0.2


@dataclass(frozen=True)
class Batch:
    """Samples, their tokens laid end to end in [T]."""

    samples: list[Sample]
    sampler: Tensor
    """Log-probs that the tokens were drawn with, [T]."""
    advantages: Tensor
    """Of each token: its sample's, [T]."""


def reward(text: str) -> float:
    """Any number from the text; here, how much of it stands in round brackets or is a colon."""
    return sum(text.count(mark) for mark in "():") / max(len(text), 1)


def draw(client: ScoringClient, version: int, n: int, max_tokens: int, seed: int) -> Batch:
    """Groups of samples from this version of the weights, each worth what it is to its group."""
    expect = Expect(min_weight_version=version)  # waits for it where it is not there yet
    # One of its own for each prompt: under a common one their samples would be correlated.
    prompts = [
        SamplePrompt(prompt, seed=seed * len(PROMPTS) + i) for i, prompt in enumerate(PROMPTS)
    ]
    results = client.sample(
        prompts,
        n=n,
        max_tokens=max_tokens,
        return_text=True,
        expect=expect,
        **SAMPLING,
    )
    # What is known of a sample can be asked again, also of samples drawn elsewhere.
    groups = [
        PromptGroup(prompt, [sample.token_ids for sample in group])
        for prompt, group in zip(PROMPTS, results, strict=True)
    ]
    scores = client.score(
        groups, processed_logprobs=True, keep_realised=True, expect=expect, **SAMPLING
    )
    samples = list(results.samples())
    sampler = torch.cat([torch.from_numpy(sample.processed_logprobs) for sample in samples])
    scored = torch.cat([torch.from_numpy(each.processed_logprobs) for each in scores.completions()])
    rewards = torch.tensor([[reward(sample.text) for sample in group] for group in results])
    seeds = {sample.seed for sample in samples}
    print(f"version {version}: {len(samples)} samples of {len(sampler)} tokens, {len(seeds)} seeds")
    print(f"mean reward: {rewards.mean().item():.4f}")
    print(f"scored again: at most {(scored - sampler).abs().max().item():.1e} nats apart")

    # Advantages: each sample's reward against its group's; in a group of one, 0.
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    spread = rewards.std(dim=1, keepdim=True, correction=0)
    advantages = (centred / (spread + 1e-6)).reshape(-1)
    lengths = torch.tensor([len(sample.token_ids) for sample in samples])
    return Batch(samples, sampler, advantages.repeat_interleave(lengths))


def train(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, steps: int
) -> None:
    """Clipped policy-gradient steps on one batch."""
    prompts = [sample.prompt_token_ids.tolist() for sample in batch.samples]
    completions = [sample.token_ids.tolist() for sample in batch.samples]
    labels = torch.cat([torch.tensor(tokens) for tokens in completions])
    settings = row_settings(
        [sample.processing for sample in batch.samples], [len(tokens) for tokens in completions]
    )
    for step in range(steps):
        logits = torch.cat(completion_logits(model, prompts, completions))
        trainer = processed_logprobs(logits, labels, **settings)
        ratios = importance_ratios(trainer, batch.sampler)
        if step == 0:
            untruncated = processed_logprobs(
                logits, labels, temperature=SAMPLING["temperature"]
            ).detach()
            print(f"mismatch KL with replay: {mismatch_kl(trainer.detach(), batch.sampler).k3:.2e}")
            print(f"mismatch KL without: {mismatch_kl(untruncated, batch.sampler).k3:.2e}")
        clipped = ratios.clamp(1 - CLIP, 1 + CLIP)
        loss = -torch.minimum(ratios * batch.advantages, clipped * batch.advantages).mean()
        print(
            f"step {step}: loss {loss.item():+z.5f}, ratios {ratios.min().item():.5f} to "
            f"{ratios.max().item():.5f}, {(ratios != clipped).float().mean().item():.0%} clipped"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Push, sample, compare, train; then the same with what was trained."""
    options = arguments(
        __doc__, iterations=3, group_size=6, max_tokens=24, steps=4, learning_rate=1e-4, seed=0
    )
    with ScoringClient(options.target) as client, AdminClient(options.target) as admin:
        client.wait_ready()
        # In float32 whatever is served: most steps are too small to change a bfloat16, and would be
        # lost. The push rounds.
        model = trainer_of(options.model, "float32")
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, weight_decay=0.0
        )
        # Somebody may have pushed other weights: what is drawn from is to be what is trained.
        version = admin.get_weights().version + 1
        admin.push_weights(model, version=version, convert_dtypes=True)
        for iteration in range(options.iterations):
            seed = options.seed + iteration
            batch = draw(client, version, options.group_size, options.max_tokens, seed)
            train(model, optimizer, batch, options.steps)
            version += 1
            admin.push_weights(model, version=version, convert_dtypes=True)


if __name__ == "__main__":
    main()
