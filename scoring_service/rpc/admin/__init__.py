"""AdminService: updates of the weights from their messages to the pool, and back."""
