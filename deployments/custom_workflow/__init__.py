"""Runs the class of a custom workflow and turns its folder into a result."""
