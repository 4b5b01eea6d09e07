"""The execution store: all SQL of this project."""
