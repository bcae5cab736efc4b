"""A gRPC service that scores token sequences and exports distributions of a language model."""

__version__ = "0.1.0"
