"""Ray: stages as Tune trainables and Train workers, one task's pipeline, the suite, the store of results."""
