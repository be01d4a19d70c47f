"""The code in a saved merge's card, run as a reader would."""

import re


def run_snippets(folder):
    """The names that the card's snippets leave, run one after the other beside the folder and an image."""
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S):
        exec(snippet.replace("hf-hub:path/or/id", f"local-dir:{folder.name}").replace("path/or/id", folder.name), names)
    return names
