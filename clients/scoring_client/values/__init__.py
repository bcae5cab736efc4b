"""What callers hand in and what they get back, and how the contract's messages hold it."""
