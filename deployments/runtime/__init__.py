"""Logging context, metrics, retries and other helpers of every process; knows no deployment."""
