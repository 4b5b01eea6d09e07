"""Decides what runs next and runs each execution, step by step, to its end."""
