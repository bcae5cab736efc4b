"""Where there is a GPU nothing has to be pretended, and a bare machine has no server to run."""

from __future__ import annotations

import importlib.util

import torch

_IS_BARE = importlib.util.find_spec("grpc") is None
collect_ignore_glob = ["test_*.py"] if torch.cuda.is_available() or _IS_BARE else []
