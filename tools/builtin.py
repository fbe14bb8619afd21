"""All tools that come with agentmesh: the target to serve them by, `agentmesh.tools.builtin`."""

from agentmesh.tools.command import run_command
from agentmesh.tools.files import list_files, read_file
from agentmesh.tools.python_ast import python_metrics
from agentmesh.tools.radon import radon_complexity
from agentmesh.tools.ruff import ruff_check

__all__ = ["list_files", "python_metrics", "radon_complexity", "read_file", "ruff_check", "run_command"]
