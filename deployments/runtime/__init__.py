"""What every process needs: logs, metrics, tasks, retries. Knows no deployment."""
