"""What an answer may use, and what it has used."""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh.agents.llm.agent.words import Reply, ToolOutcome
from agentmesh.agents.llm.messages import TokenUsage
from agentmesh.errors import BudgetExceededError, DefinitionError


@dataclass(frozen=True)
class Limits:
    """For one answer, whatever it takes; None: no bound."""

    steps: int = 8
    """Calls of the model."""
    tokens: int | None = None
    """Of all questions to the model and all its replies."""
    cost: float | None = None
    """US dollars."""
    seconds: float | None = None
    """Of models and tools at work; a wait for a person does not count."""

    def check(self, where: str) -> Limits:
        """Itself.

        Raises:
            DefinitionError: A limit that leaves nothing.
        """
        for name in ("steps", "tokens", "cost", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DefinitionError(where, f"max_{name} must be more than 0, not {value!r}")
        return self


class Spending:
    """Counts what was recorded and nothing else, so that it comes to the same when an answer is gone through again.

    Args:
        limits: What there is.
        owner: The agent.
    """

    def __init__(self, limits: Limits, owner: str) -> None:
        self._limits = limits
        self._owner = owner
        self.steps = 0
        self.tokens = 0
        self.cost = 0.0
        self.seconds = 0.0
        self.usage = TokenUsage()

    def replied(self, reply: Reply) -> None:
        """A call of the model."""
        self.steps += 1
        self.tokens += reply.usage.total_tokens
        self.cost += reply.cost
        self.seconds += reply.seconds
        self.usage = TokenUsage.of(
            self.usage.prompt_tokens + reply.usage.prompt_tokens,
            self.usage.completion_tokens + reply.usage.completion_tokens,
        )

    def used(self, outcome: ToolOutcome) -> None:
        """A tool call."""
        self.seconds += outcome.seconds

    def check(self) -> None:
        """Before anything more is begun.

        Raises:
            BudgetExceededError: Nothing more may be.
        """
        for name in ("steps", "tokens", "cost", "seconds"):
            limit = getattr(self._limits, name)
            if limit is not None and getattr(self, name) >= limit:
                raise BudgetExceededError(name, limit, self._owner)

    @property
    def tokens_left(self) -> int | None:
        """None: no bound."""
        return None if self._limits.tokens is None else max(0, self._limits.tokens - self.tokens)

    @property
    def seconds_left(self) -> float | None:
        """None: no bound."""
        return None if self._limits.seconds is None else max(0.0, self._limits.seconds - self.seconds)
