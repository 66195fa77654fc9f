"""Write the generated code of protos/ into the package, or with --check fail if it is out of date."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PROTOS = ROOT / "protos"


def generate(target: Path) -> list[Path]:
    """Run protoc over every .proto file; return the generated paths, relative to ``target``."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTOS}", *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")
    return sorted(path.relative_to(target) for path in target.rglob("*_pb2*.py*") if "__pycache__" not in path.parts)


def main() -> None:
    if "--check" not in sys.argv:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        stale = [p for p in generate(Path(folder)) if (ROOT / p).read_bytes() != (Path(folder) / p).read_bytes()]
    if stale:
        raise SystemExit(f"out of date: {', '.join(map(str, stale))}; run python protos/generate.py")


if __name__ == "__main__":
    main()
