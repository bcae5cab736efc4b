"""``python -m scoring_service`` is the command ``scoring-service``."""

from scoring_service.cli import main

main()
