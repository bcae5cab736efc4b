"""The plain path: one sequence a forward pass, for models that cannot be packed."""
