"""Workers and the calls they hold: admission, routing, life and death."""
