"""What a task is, as data: the schema, the benches and the published scores."""
