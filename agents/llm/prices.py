"""What a call costs. Money is counted in whole nano-dollars, so that sums are exact."""

from __future__ import annotations

import math

from agentmesh.agents.llm.messages import TokenUsage
from agentmesh.config import PriceSettings

NANO = 1_000_000_000


def cost_of(usage: TokenUsage, price: PriceSettings) -> float:
    """US dollars."""
    return (usage.prompt_tokens * price.prompt + usage.completion_tokens * price.completion) / 1e6


def nano(dollars: float) -> int:
    """Nano-dollars, rounded up."""
    return math.ceil(dollars * NANO - 1e-6)
