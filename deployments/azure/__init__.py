"""Access to Azure: tokens of this server's identity, and the client of Blob Storage."""
