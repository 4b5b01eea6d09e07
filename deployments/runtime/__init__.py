"""What every process uses, such as log context, metrics and retries; knows no deployment."""
