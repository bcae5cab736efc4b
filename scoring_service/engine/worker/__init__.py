"""A worker: its process, its loop, and its channel to the server."""
