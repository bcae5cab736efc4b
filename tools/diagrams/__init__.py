"""The diagrams of ``docs/``, drawn by these scripts: ``python -m tools.diagrams``."""
