"""Ray: jobs in warm processes, Tune trials and Train workers, one task's pipeline, the suite."""
