"""Runs the code in model cards and on pages of the documentation as a reader would."""

import re
import shlex
import subprocess
import sys

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("accelerate", "cd", "git", "hf", "pip")  # commands that are not run: they install or start something


def run_snippets(folder):
    """Run the snippets of a folder's card in order, from the folder's parent; returns the names they define."""
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S):
        exec(snippet.replace("hf-hub:path/or/id", f"local-dir:{folder.name}").replace("path/or/id", folder.name), names)
    return names


def commands_in(block):
    """The commands of a block of shell, as lists of words."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def run_page(page, run, names):
    """Run the blocks of a page marked `python` and `bash` in order, in the current folder.

    `run` runs `hf-zipit` and returns (exit code, stdout, stderr); `names` are what Python has at hand at the beginning.
    """
    names = dict(names)
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, str(page), "exec"), names)
            continue
        for program, *arguments in commands_in(block):
            if program == "hf-zipit":
                code, _, said = run(*arguments)
                assert code == 0, f"{page.name}: {arguments}: {said}"
            elif program == "python":
                subprocess.run([sys.executable, *arguments], check=True)
            else:
                assert program in ELSEWHERE, f"{page.name}: {program}"
