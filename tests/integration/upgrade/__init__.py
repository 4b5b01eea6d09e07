"""What an upgrade finds: a data folder of an earlier version."""
