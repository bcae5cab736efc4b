"""The weights of a pool: updates from their first byte to their commit, and the sets held."""
