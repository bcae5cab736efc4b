"""Where there is a GPU, nothing has to be pretended."""

from __future__ import annotations

import torch

collect_ignore_glob = ["test_*.py"] if torch.cuda.is_available() else []
