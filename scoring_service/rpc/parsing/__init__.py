"""Requests to plain types: what is refused of them, and what the messages say."""
