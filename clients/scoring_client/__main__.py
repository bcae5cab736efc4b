"""``python -m scoring_client`` is the command ``scoring-client``."""

from scoring_client.command import main

main()
