"""The ``scoring-client`` command: a file for each command, and what they print."""
