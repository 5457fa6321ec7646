"""The command line explains itself: every command teaches, every example works, and a mistake is answered in one sentence."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from worker.cli import app, main
from worker.cli_examples import TAUGHT, commands

ROOT = Path(__file__).parents[2]
COMMANDS = dict(commands(app))
SERVERS = {"web", "worker", "completion"}
"""They answer with something else than a document."""


async def told(*arguments: str) -> int:
    """In a thread: commands run event loops of their own."""
    return await asyncio.to_thread(main, list(arguments))


def test_every_command_is_taught_and_nothing_is_taught_that_is_no_command() -> None:
    assert set(TAUGHT) == set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
async def test_every_command_says_in_a_sentence_what_it_does_what_it_changes_and_shows_an_example(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await told(*words.split(), "--help") == 0
    page = " ".join(capsys.readouterr().out.split())
    assert f"Usage: finalsale {words}" in page
    assert re.search(r"[A-Z][^.]+[.:]", COMMANDS[words].help or "")
    assert "Changes: " in page
    assert f"Example: finalsale {words}" in page


@pytest.mark.parametrize("words", COMMANDS)
def test_every_example_is_understood(words: str) -> None:
    """Its command, its options and their values, by the same reader that will read them."""
    bound = app.parse_args(shlex.split(TAUGHT[words].example), exit_on_error=False, print_error=False)
    assert bound[0] is not None


@pytest.mark.parametrize("words", sorted(COMMANDS.keys() - SERVERS))
def test_every_command_answers_programs_too(words: str) -> None:
    names = {name for argument in COMMANDS[words].assemble_argument_collection() for name in argument.names}
    assert "--json" in names


@pytest.mark.parametrize("words", COMMANDS)
async def test_an_unknown_option_is_one_sentence_and_exit_code_2(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = shlex.split(TAUGHT[words].example)
    assert await told(*given, "--no-such-option") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("finalsale: ")
    assert "no-such-option" in said.err
    assert "--help" in said.err


async def test_an_unknown_command_is_told_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert await told("reviw") == 2
    said = capsys.readouterr()
    assert (said.out, "review" in said.err) == ("", True)


def test_commands_that_help_and_messages_name_exist() -> None:
    """Whatever stands in our sources as `finalsale WORDS` is a command, or the beginning of one."""
    named = set()
    for path in (ROOT / "worker").rglob("*.py"):
        named |= set(re.findall(r"`finalsale ([a-z]+(?: [a-z]+)?)", path.read_text(encoding="utf-8")))
    groups = {words.split()[0] for words in COMMANDS}
    unknown = {n for n in named if n not in COMMANDS and n.split()[0] not in COMMANDS and n not in groups}
    assert unknown == set()


def test_the_tab_key_completes_commands_and_options_in_bash() -> None:
    script = app.generate_completion(shell="bash")
    words = {"finalsale rev": "review", "finalsale review app": "approve", "finalsale doctor --gr": "--grants"}
    for line, completed in words.items():
        typed = line.split()
        asked = f"""
            {script}
            COMP_WORDS=({line}); COMP_CWORD={len(typed) - 1}; COMP_LINE="{line}"; COMP_POINT={len(line)}
            _finalsale finalsale {typed[-1]} {typed[-2]}
            echo "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout.split() == [completed]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_every_shell_is_printed(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "completion", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "finalsale" in done.stdout
    assert done.stderr == ""
