"""What mkdocs needs beyond the pages of this folder: pages from outside it, and the links to them.

A page keeps the links that are right in the repository, such as `../benchmarks/README.md`. They are rewritten when the
site is built: to the page of that file or, if it has none, to the file in the repository.
"""

import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = (  # files of the repository that are part of the site, at the same path
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/papers/README.md",
    "benchmarks/real_pair.png",
    "benchmarks/traced_models.md",
    "model_specs/README.md",
)
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")  # the target of a relative link
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
MATH = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside this folder."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, but not in code, and write its equations as MathML, which needs no script."""
    uri = page.file.src_uri
    here = posixpath.dirname(uri if uri in OUTSIDE else f"docs/{uri}")

    def target(found: re.Match[str]) -> str:
        path, anchor = posixpath.normpath(posixpath.join(here, found[1])), found[2] or ""
        inside = path.removeprefix("docs/")
        if files.get_file_from_path(inside) and (inside != path or inside in OUTSIDE):
            return posixpath.relpath(inside, posixpath.dirname(uri) or ".") + anchor
        if not (ROOT / path).exists():
            raise PluginError(f"page '{page.title}' links to {found[1]}, but there is no {path}")
        return f"{config.repo_url}/blob/main/{path}{anchor}"

    kept = [found.span() for found in CODE.finditer(markdown)]
    parts, end = [], 0
    for start, stop in kept:
        parts += [LINK.sub(target, markdown[end:start]), markdown[start:stop]]
        end = stop
    return MATH.sub(equation, "".join([*parts, LINK.sub(target, markdown[end:])]))


def equation(found: re.Match[str]) -> str:
    """A block of LaTeX as MathML, which scrolls where it is too wide.

    Raises:
        PluginError: it holds a command that has no MathML.
    """
    written = convert(found[1].strip(), display="block")
    if left := re.findall(r"\\\w*", written):
        raise PluginError(f"{found[1].strip()!r}: {left[0]} has no MathML")
    return f'<div style="overflow: auto hidden; padding: 0.3em 0">{written}</div>\n'
