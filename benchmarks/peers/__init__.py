"""Real peers, one a file, each with the settings that a fair user would choose."""
