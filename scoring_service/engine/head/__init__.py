"""The head: final hidden states to tiles of logits."""
