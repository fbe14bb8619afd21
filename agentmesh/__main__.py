"""`python -m agentmesh`: the command line."""

from agentmesh.cli import main

main()
