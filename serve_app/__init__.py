"""The application: settings, `build` and the HTTP ingress."""
