"""Decides what runs next and carries each execution to its end."""
