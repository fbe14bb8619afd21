"""A conversation of each test's own."""

from __future__ import annotations

import pytest

from agentmesh.ids import new_id


@pytest.fixture
def chat() -> str:
    """Its id."""
    return f"chat-{new_id()}"
