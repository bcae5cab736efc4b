"""Attention over segments: runs of tokens, each continuing another, keys and values in pages."""
