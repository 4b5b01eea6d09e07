"""Identity and blob clients."""
