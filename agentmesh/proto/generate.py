"""`python -m agentmesh.proto.generate DIR`: make the Python code from the `.proto` files.

The code in this package was made by protoc 4.25.1 (`grpcio-tools==1.62.3`): what newer ones make refuses to run on any
protobuf that is older than they are, and what this one makes runs on all from 4.25 on (tried up to 7.36). To see
whether the code is up to date any version will do: a test makes it anew, and compares what it says.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from agentmesh.errors import MissingExtraError
from agentmesh.proto.files import FILES

_SIBLING = re.compile(r"^import (\w+_pb2) as", re.MULTILINE)


def generate(directory: Path) -> list[Path]:
    """Make the modules and their stubs in `directory`; returns their paths.

    Raises:
        MissingExtraError: `grpcio-tools` is not installed.
    """
    if importlib.util.find_spec("grpc_tools") is None:
        raise MissingExtraError("grpcio-tools", "dev")
    source = Path(__file__).parent
    outputs = [f"--python_out={directory}", f"--pyi_out={directory}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", *outputs, *FILES], check=True)
    made = [directory / f"{name.removesuffix('.proto')}_pb2{ending}" for name in FILES for ending in (".py", ".pyi")]
    for path in made:  # protoc writes for modules at the top level
        path.write_text(_SIBLING.sub(r"from agentmesh.proto import \1 as", path.read_text()))
    return made


if __name__ == "__main__":
    for made in generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(made)
