"""Calls from what was asked to what came back: divided, sent, resumed, put together."""
