"""Reaches Azure: tokens for this server's identity, and the one client of Blob Storage."""
