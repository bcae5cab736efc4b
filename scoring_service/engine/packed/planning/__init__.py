"""What the next step does: which samples go on, and what joins them."""
