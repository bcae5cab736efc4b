"""Weights on their way from a trainer to a server: names, bytes, digest, messages."""
