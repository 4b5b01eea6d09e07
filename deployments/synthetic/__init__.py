"""Stand-in models and data sources for machines without a GPU."""
