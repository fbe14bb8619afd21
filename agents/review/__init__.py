"""A code-review swarm: walker, file reviewers, deduplicator, ranker and reporter."""
