"""`lightning completion`: prints what lets a shell complete commands and files."""

from __future__ import annotations

import argparse

from lightning_mllm.cli.commands import COMMANDS, PROGRAM
from lightning_mllm.cli.sentence_parser import SentenceParser

_SHELLS = ("bash", "zsh", "fish")
_PROGRAMS = (PROGRAM, "lightning-mllm")
_OPTIONS = "--config --help --print_config --model.checkpoint --data --trainer.max_epochs"
_HOW = """put one line where the shell reads it when it starts:
  bash, in ~/.bashrc:                  eval "$(lightning completion bash)"
  zsh, in ~/.zshrc, after compinit:    eval "$(lightning completion zsh)"
  fish, in ~/.config/fish/config.fish: lightning completion fish | source"""
_BASH = """_lightning_mllm() {
  local word="${COMP_WORDS[COMP_CWORD]}" first="${COMP_WORDS[1]}" words=""
  COMPREPLY=()
  if [[ $COMP_CWORD == 1 ]]; then
    words="@FIRST@ --help --version"
  elif [[ $COMP_CWORD == 2 ]]; then
    case "$first" in
@GROUPS@
    esac
  fi
  if [[ -z "$words" && "$word" == -* ]]; then
    words="@OPTIONS@"
  fi
  if [[ -n "$words" ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  else
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -F _lightning_mllm @PROGRAMS@
"""
_ZSH = "autoload -Uz bashcompinit && bashcompinit\n"


def run(name: str, arguments: list[str]) -> None:
    """Print the script."""
    parser = SentenceParser(
        prog=f"{PROGRAM} {name}",
        description="Print what lets a shell complete commands, options and files.",
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=_SHELLS)
    shell = parser.parse_args(arguments).shell
    print(_fish() if shell == "fish" else (_ZSH if shell == "zsh" else "") + _bash(), end="")


def _commands() -> dict[str, list[str]]:
    """Return the first word of each command, and the words that can follow it."""
    words: dict[str, list[str]] = {}
    for command in COMMANDS:
        first, _, second = command.name.partition(" ")
        words.setdefault(first, []).extend([second] if second else [])
    return words | {"completion": list(_SHELLS)}


def _bash() -> str:
    groups = (
        f'      {first}) words="{" ".join(seconds)}" ;;'
        for first, seconds in _commands().items()
        if seconds
    )
    return (
        _BASH.replace("@FIRST@", " ".join(_commands()))
        .replace("@GROUPS@", "\n".join(groups))
        .replace("@OPTIONS@", _OPTIONS)
        .replace("@PROGRAMS@", " ".join(_PROGRAMS))
    )


def _fish() -> str:
    lines = []
    for program in _PROGRAMS:
        start = f"complete -c {program}"
        for first, seconds in _commands().items():
            lines.append(f"{start} -n __fish_use_subcommand -a {first}")
            lines += [
                f"{start} -n '__fish_seen_subcommand_from {first}' -a {each}" for each in seconds
            ]
        lines += [f"{start} -l {option.removeprefix('--')}" for option in _OPTIONS.split()]
    return "\n".join([*lines, ""])
