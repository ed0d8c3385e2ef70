"""Files to shards, shards to batches."""
