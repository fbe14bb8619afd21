"""Ready-made agents built on agentmesh."""
