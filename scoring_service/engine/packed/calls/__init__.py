"""Calls under way: their items as runs, and the room that is promised to them."""
