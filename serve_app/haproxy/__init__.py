"""Starts HAProxy for Serve, with a configuration that keeps the contract of the HTTP API."""
