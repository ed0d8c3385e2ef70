"""What happens while a suite runs, and where people see it: events, progress, status, the logs of trials."""
