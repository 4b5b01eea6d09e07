"""Mutated HTTP requests, byte by byte, and what may be answered to them."""
