"""Runs the program of a package with arguments that nobody else on the machine may see, such as credentials.

`python -m agentmesh.supervisor.service agentmesh.memory_store` reads the arguments from standard input, a JSON list.
"""

from __future__ import annotations

import sys
from importlib import import_module

import msgspec


def main() -> int:
    """The exit code of the program."""
    arguments = msgspec.json.decode(sys.stdin.buffer.read(), type=list[str])
    code: int = import_module(f"{sys.argv[1]}.__main__").main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
