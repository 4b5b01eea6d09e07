"""The only writer of results of built-in workflows; it also describes, exports and removes them."""
