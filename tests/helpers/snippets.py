"""Runs the code in a model card as a reader would."""

import re


def run_snippets(folder):
    """Run the snippets of a folder's card in order, from the folder's parent; returns the names they define."""
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S):
        exec(snippet.replace("hf-hub:path/or/id", f"local-dir:{folder.name}").replace("path/or/id", folder.name), names)
    return names
