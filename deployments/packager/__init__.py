"""The only deployment that writes results of built-in workflows; it also describes and removes them."""
