"""Hooks of the documentation site: a page of reference for each module, and links out of docs/.

mkdocs calls these functions by name. README.md becomes the first page. A link to a module leads to its page of
reference, and a link to any other file outside of docs/ becomes the file's name.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LIBRARY = "polytoken"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page and the pages of reference."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for name in _modules():
        files.append(File.generated(config, f"api/{name}.md", content=f"::: {name}\n"))
    rows = "\n".join(f"- [`{name}`]({name}.md)" for name in _modules())
    files.append(File.generated(config, "api/index.md", content=f"# Reference\n\n{rows}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    folder = ROOT if page.file.src_uri == "index.md" else ROOT / "docs"

    def rewritten(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups(default="")
        place = (folder / target).resolve()
        if "://" in target or not place.exists() or page.file.src_uri.startswith("api/"):
            return found[0]
        if place.is_relative_to(ROOT / "docs"):
            return f"{image}[{text}]({place.relative_to(ROOT / 'docs')}{anchor})"
        name = ".".join(place.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        return f"[{text}](api/{name}.md)" if name in _modules() else text

    return LINK.sub(rewritten, markdown)


def _modules() -> list[str]:
    """All modules and packages of the library that are not private."""
    paths = sorted((ROOT / LIBRARY).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]
