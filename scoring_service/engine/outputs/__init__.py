"""What is made of logits: rows of scores, tokens drawn, and the slices that they are sent in."""
