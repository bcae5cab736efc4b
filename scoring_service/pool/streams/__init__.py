"""An admitted call: its parts, what was delivered of them, what of it is computed twice."""
