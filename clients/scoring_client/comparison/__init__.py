"""Whether a server computes what plain transformers does, and why not where it does not."""
