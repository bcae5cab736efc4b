"""Answers: what the engine and the model say, in the messages of the contract."""
