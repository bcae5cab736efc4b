"""The command ``scoring-lm-eval``: lm-eval's own command line with a scoring server as a model.

lm-eval 0.4.13 looks for models in its own package alone, so somebody has to import ours before it
runs. Later ones find it by its entry point.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys


def main() -> None:
    """Run lm-eval with the arguments of the command line."""
    if importlib.util.find_spec("lm_eval") is None:
        sys.exit("scoring-lm-eval runs lm-eval, which is not there: pip install 'lm-eval>=0.4.13'")
    importlib.import_module("scoring_client.adapters.lm_eval")
    importlib.import_module("lm_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    main()
