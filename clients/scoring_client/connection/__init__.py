"""How servers are reached: targets, channels, what gRPC says of them, when to ask again."""
