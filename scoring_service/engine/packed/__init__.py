"""The packed engine: many sequences a forward pass, prompts computed once, memory in pages."""
