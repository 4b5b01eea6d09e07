"""Writes, describes and removes the results of the built-in workflows; nothing else writes them."""
