"""Workers from their start to their end: where they run, what they say, which gets what."""
