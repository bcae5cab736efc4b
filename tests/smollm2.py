"""SmolLM2-135M, a real small model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TOOL = Path(__file__).parents[1] / "tools" / "fetch_smollm2.py"


def fetched_smollm2() -> Path:
    """Its GGUF file, fetched when it is not there; skips where that cannot be, and fails in CI."""
    fetched = subprocess.run([sys.executable, _TOOL], capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        message = f"SmolLM2-135M cannot be fetched: {fetched.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return Path(fetched.stdout.strip())
