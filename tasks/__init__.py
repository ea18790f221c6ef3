"""Core functions + retries + reuse + lineage, per shard: the only room that knows Prefect's tasks."""
