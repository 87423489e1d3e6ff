"""Can a stranger who knows only the tree guess the file of a public name?

Draws 40 public names (classes and functions without an underscore) with a seed made of the last
commit's hash:

    python -m tests.benchmarks.guessing_game draw > names.txt    # the tree, and the names to place
    python -m tests.benchmarks.guessing_game score answers.txt   # lines of "Name path/of/file.py"

The answers are written down before the second command shows the key.
"""

from __future__ import annotations

import argparse
import ast
import random
import subprocess
from pathlib import Path

from tests.benchmarks.code_size import HERE, library_files

DRAWN = 40


def public_names() -> dict[str, set[str]]:
    """Return the files of each public class and function of a module."""
    found: dict[str, set[str]] = {}
    for file in library_files(HERE, ""):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                found.setdefault(node.name, set()).add(str(file.relative_to(HERE)))
    return found


def draw(names: list[str]) -> list[str]:
    """Return the names that this commit asks for."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
    ).stdout.strip()
    return random.Random(commit).sample(sorted(names), DRAWN)


def score(key: dict[str, set[str]], asked: list[str], answers: Path) -> None:
    """Print which answers are right, and their number."""
    given = dict(
        line.split(maxsplit=1)
        for line in answers.read_text(encoding="utf-8").splitlines()
        if line.strip()
    )
    right = 0
    for name in asked:
        answer = given.get(name, "nothing").strip()
        hit = answer in key[name]
        right += hit
        files = "" if hit else ", ".join(sorted(key[name]))
        print(f"{'right' if hit else 'WRONG':<6} {name:<30} {answer:<55} {files}")
    print(f"{right} of {DRAWN}")


def main() -> None:
    """Draw, or score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("draw", "score"))
    parser.add_argument("answers", nargs="?", type=Path, help="file of answers, for `score`")
    options = parser.parse_args()
    key = public_names()
    asked = draw(list(key))
    if options.what == "score":
        score(key, asked, options.answers)
        return
    print(
        "\n".join(
            str(file.relative_to(HERE))
            for file in library_files(HERE, "")
            if file.name != "__init__.py"
        )
    )
    print("\nPlace these names:\n" + "\n".join(asked))


if __name__ == "__main__":
    main()
