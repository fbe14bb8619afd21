"""The gateway to language models: one agent, `llm`, behind every door.

    async for part in mesh.stream("llm", LLMRequest(prompt="Tell me about NATS")):
        print(part.content, end="")

Where to look: `messages` what is asked and answered, `gateway` the agent, `pipeline` the life of a request, `backends`
what talks to models.
"""

from agentmesh.agents.llm.agent import LLMAgent
from agentmesh.agents.llm.backends import ModelBackend, ModelCall
from agentmesh.agents.llm.gateway import LLMGateway
from agentmesh.agents.llm.messages import (
    CachePolicy,
    Generate,
    GenerationParameters,
    ListModels,
    LLMError,
    LLMPart,
    LLMRequest,
    LLMResponse,
    Meta,
    ModelStatus,
    TokenUsage,
)
from agentmesh.codes import ErrorCode

__all__ = [
    "CachePolicy",
    "ErrorCode",
    "Generate",
    "GenerationParameters",
    "LLMAgent",
    "LLMError",
    "LLMGateway",
    "LLMPart",
    "LLMRequest",
    "LLMResponse",
    "ListModels",
    "Meta",
    "ModelBackend",
    "ModelCall",
    "ModelStatus",
    "TokenUsage",
]
