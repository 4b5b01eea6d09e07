"""The execution store: all of our SQL."""
