"""The tool executor, the processes it runs tools in, and tools that come with agentmesh.

`python -m agentmesh.tools module:tool …` serves tools; `agentmesh.tooling` is how they are written and called.
"""
