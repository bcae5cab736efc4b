"""How much may wait, whose turn it is, and what memory calls and their answers take."""
