"""A model's files: where they are, and what is read of them."""
