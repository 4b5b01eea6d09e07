"""Ray Serve deployments, one folder each, and the libraries that they share."""
