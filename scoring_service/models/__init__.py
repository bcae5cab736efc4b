"""Models that ship with the package."""

from pathlib import Path


def tiny_model_path() -> Path:
    """Return the folder of the packaged tiny model, in the Hugging Face layout."""
    return Path(__file__).resolve().parent / "tiny"
