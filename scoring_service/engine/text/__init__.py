"""Text to tokens and back, and the strings that end a sample."""
