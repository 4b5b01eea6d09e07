"""What deployments share, such as log context, metrics, retries and workers; knows none of them."""
