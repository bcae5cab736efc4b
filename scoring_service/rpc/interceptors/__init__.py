"""What stands before every RPC: who may call, how many at once, and what is counted."""
