"""The execution store: its tables and all queries."""
