"""The demo, and two workflow classes to serve."""
