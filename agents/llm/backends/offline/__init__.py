"""A model that needs no network: rules over the text it is given. The same question always has the same answer."""

from agentmesh.agents.llm.backends.offline.backend import OfflineBackend
from agentmesh.agents.llm.backends.offline.tokens import count_tokens, tokenize

__all__ = ["OfflineBackend", "count_tokens", "tokenize"]
