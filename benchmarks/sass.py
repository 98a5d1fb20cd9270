"""Lists the loops of a kernel in its machine code, with their instructions: what cuda_model.py counts.

    python benchmarks/sass.py bucket_bce_kernelIf [LIBRARY] [--arch sm_90]

It needs cuobjdump and nvdisasm of the CUDA toolkit on PATH. The kernel is chosen by a part of its name as the
compiler mangles it. A jump back to an address makes a loop. The compiler puts rare blocks behind a kernel's
end. They show as long loops around the real one, which is the shortest from its address.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "mach_ext" / "_cuda.so"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);")


def kernels(listing: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Names and instructions, with their addresses, of what cuobjdump --dump-sass prints."""
    for body in re.split(r"\n\s+Function : ", listing)[1:]:
        name, _, code = body.partition("\n")
        yield name.strip(), [(int(address, 16), text.strip()) for address, text in INSTRUCTION.findall(code)]


def loops(code: list[tuple[int, str]]) -> list[tuple[int, int, list[str]]]:
    """Start, end and instructions of the shortest loop from each address that is jumped back to."""
    shortest: dict[int, int] = {}
    for address, text in code:
        jump = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            start = int(jump[1], 16)
            shortest[start] = min(address, shortest.get(start, address))
    return [
        (start, end, [text for address, text in code if start <= address <= end])
        for start, end in sorted(shortest.items())
    ]


def mnemonic(text: str) -> str:
    return re.sub(r"^@!?U?P\w+ ", "", text).split()[0].split(".")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel")
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY)
    parser.add_argument("--arch", default="sm_90")
    args = parser.parse_args()
    if shutil.which("cuobjdump") is None or shutil.which("nvdisasm") is None:
        raise SystemExit("cuobjdump and nvdisasm are not on PATH; the CUDA toolkit has them")
    command = ["cuobjdump", "-arch", args.arch, "--dump-sass", str(args.library.resolve())]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name, code in kernels(listing):
        if args.kernel not in name:
            continue
        print(f"{name}: {len(code)} instructions")
        for start, end, inner in loops(code):
            counts = collections.Counter(map(mnemonic, inner)).most_common(12)
            print(f"  {start:#x} to {end:#x}: {len(inner)},", " ".join(f"{n} {op}" for op, n in counts))


if __name__ == "__main__":
    main()
