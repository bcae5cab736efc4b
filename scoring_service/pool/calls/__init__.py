"""Calls from their admission to their end: cut, handed to workers, moved, given up."""
