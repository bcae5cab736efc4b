"""From a model's name to a model that answers, and the path that it takes."""
