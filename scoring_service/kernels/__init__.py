"""Arithmetic on tiles of logits: the reference, and the back-ends that must agree with it."""
