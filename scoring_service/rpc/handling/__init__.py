"""What RPCs of every kind share: their handlers, callers, bytes in and out, and their faults."""
