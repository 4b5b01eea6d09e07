"""The Ray Serve deployments, one per module, and what only they need."""
