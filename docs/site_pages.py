"""MkDocs hook: README and other pages from outside docs/, the version in title and folder, and the list of versions.

Links are written for the repository, where pages are read as files; here they are turned to where the pages stand on the site.
A link to a file that the site does not have (code, an overlay) becomes its path in words.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenlabel import __version__

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
# page of the site -> file of the repository
BROUGHT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security-policy.md": "SECURITY.md",
    "examples/custom_folder.md": "examples/custom_folder/README.md",
    "examples/camvid.md": "examples/camvid/README.md",
    "examples/tinyimagenet20.md": "examples/tinyimagenet20/README.md",
}
PLACES = {file: page for page, file in BROUGHT.items()}
LINK = re.compile(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the version into title and folder, so that sites of several versions lie beside each other."""
    config.site_name = f"{config.site_name} {__version__}"
    config.site_dir = str(Path(config.site_dir) / __version__)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/; a page that the menu does not name stands at its end."""
    from mkdocs.structure.files import File

    for page, file in BROUGHT.items():
        files.append(File.generated(config, page, content=(REPOSITORY / file).read_text(encoding="utf-8")))
    unnamed = sorted({file.src_uri for file in files.documentation_pages()} - set(_pages_of(config.nav)))
    if unnamed and config.nav is not None:
        config.nav.append({"More": unnamed})
    return files


def _pages_of(menu: Any) -> Iterator[str]:
    """Every page that a menu of lists, titles and pages names."""
    if isinstance(menu, str):
        yield menu
    for part in menu.values() if isinstance(menu, dict) else menu if isinstance(menu, list) else ():
        yield from _pages_of(part)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns a page's links."""
    here = page.file.src_uri
    folder = posixpath.dirname(BROUGHT.get(here, f"docs/{here}"))

    def turned(link: re.Match[str]) -> str:
        mark, words, target, anchor = link.groups(default="")
        path = posixpath.normpath(posixpath.join(folder, target))
        place = PLACES.get(path) or path.removeprefix("docs/")
        if path != "README.md" and place == path:  # neither brought nor in docs/
            return f"{words} (`{path}`)" if words.strip("`") != path else f"`{path}`"
        return f"{mark}[{words}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(turned, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Lists the versions that lie beside this one, newest first, and sends a reader of the top folder to this one."""
    top = Path(config.site_dir).parent
    versions = sorted((path.parent.name for path in top.glob("*/index.html")), key=_numbers, reverse=True)
    listed = [{"version": version, "title": version, "aliases": []} for version in versions]
    (top / "versions.json").write_text(json.dumps(listed), encoding="utf-8")
    newest = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={versions[0]}/index.html">\n'
    (top / "index.html").write_text(newest, encoding="utf-8")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
