"""Writes, describes and removes the results of our own workflows: the only writer of them."""
