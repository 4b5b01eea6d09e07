"""The application: settings, `build`, the HTTP API and the commands."""
