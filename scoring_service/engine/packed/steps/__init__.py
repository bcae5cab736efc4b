"""One step: the forward, the head over its wanted rows, and what becomes of them."""
