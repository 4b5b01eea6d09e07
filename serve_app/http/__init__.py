"""The HTTP API: routes, bodies, errors, authentication and the Ingress deployment."""
