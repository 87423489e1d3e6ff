"""Counts the library's modules, classes, functions, statements, lines, and what the rules bound.

    python tests/benchmarks/code_size.py                       # this tree
    python tests/benchmarks/code_size.py ../older --room analysis

Files that git tracks are counted, links are not.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parents[2]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def library_files(tree: Path, room: str) -> list[Path]:
    """Return the tracked Python files of the package and of its callbacks, or of one room only."""
    patterns = (
        [f"lightning_mllm/{room}/*.py"] if room else ["lightning_mllm/*.py", "callbacks/*.py"]
    )
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=tree, capture_output=True, text=True, check=True
    ).stdout.split()
    return [tree / name for name in listed if not (tree / name).is_symlink()]


def count(file: Path) -> Counter[str]:
    """Return what one file holds."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = Counter(modules=1, lines=len(lines))
    found["lines over 100 columns"] = sum(len(line) > 100 for line in lines)
    found["files over 300 lines"] = int(len(lines) > 300)
    for node in ast.walk(ast.parse(text)):
        found["classes"] += isinstance(node, ast.ClassDef)
        found["statements"] += isinstance(node, ast.stmt)
        found["comprehensions"] += isinstance(node, COMPREHENSIONS)
        if isinstance(node, COMPREHENSIONS):
            found["nested comprehensions"] += _is_nested(node)
        if isinstance(node, FUNCTIONS):
            found["functions"] += 1
            found["functions over 60 lines"] += (node.end_lineno or 0) - node.lineno + 1 > 60
    return found


def _is_nested(node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> bool:
    """Tell whether a comprehension has two `for`, or holds another one."""
    inner = [
        child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS) and child is not node
    ]
    return len(node.generators) > 1 or bool(inner)


def main() -> None:
    """Print one line per count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", nargs="?", type=Path, default=HERE, help="folder of a clone")
    parser.add_argument("--room", default="", help="folder of the package that is counted alone")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for file in library_files(options.tree, options.room):
        total += count(file)
    for name, number in total.items():
        print(f"{name:>25} {number:>7,}")
    for name in ("comprehensions", "nested comprehensions", "lines over 100 columns"):
        print(f"{name + ' per 100 lines':>40} {100 * total[name] / total['lines']:.2f}")


if __name__ == "__main__":
    main()
