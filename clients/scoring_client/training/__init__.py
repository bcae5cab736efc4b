"""What losses and replay are made of; all but ``numpy_buckets`` needs torch."""
