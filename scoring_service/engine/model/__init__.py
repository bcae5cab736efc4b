"""A causal language model: its body with its head, and what decides its bits."""
