"""What `serve` is made of: the settings of each room, and what people are told."""
