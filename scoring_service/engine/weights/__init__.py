"""The weights of a version: as a network takes them, their names and shapes, their digest."""
