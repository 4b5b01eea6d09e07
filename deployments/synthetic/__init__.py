"""Models and data sources without weights, for machines without a GPU."""
