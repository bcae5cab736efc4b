"""Loads a model and computes rows and samples. Imports torch and transformers, and no server."""
