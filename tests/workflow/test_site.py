"""The documentation as a site: complete, without a broken link, readable without a network."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tokenlabel.labels
import tokenlabel.models
from tokenlabel import __version__

from .browser import CHROMIUM, open_browser
from .conftest import REPOSITORY


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, beside an older version's."""
    folder = tmp_path_factory.mktemp("site")
    for version in ("0.0.9", "0.0.10"):
        (folder / version).mkdir()
        (folder / version / "index.html").write_text("older")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_on_the_site_and_links_lead_somewhere(site: Path) -> None:
    """MkDocs has checked links between pages; links to what is no page are turned into words."""
    top = site / __version__
    for page in (REPOSITORY / "docs").rglob("*.md"):
        assert (top / page.relative_to(REPOSITORY / "docs").with_suffix(".html")).exists(), page
    for page in top.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if page.name != "404.html" and not re.match(r"https?:|data:|mailto:", target):
                assert (page.parent / html.unescape(target)).exists(), f"{page.name}: {target}"


def test_the_api_is_that_of_the_docstrings(site: Path) -> None:
    text = (site / __version__ / "api.html").read_text(encoding="utf-8")
    for module in (tokenlabel.labels, tokenlabel.models):
        for name in module.__all__:
            assert f'id="{module.__name__}.{name}"' in text, name
    docstring = tokenlabel.labels.sparse_targets.__doc__
    assert docstring
    assert html.escape(docstring.splitlines()[0].split("`")[0], quote=False) in text


def test_versions_lie_beside_each_other(site: Path) -> None:
    listed = [entry["version"] for entry in json.loads((site / "versions.json").read_text())]
    assert listed == [__version__, "0.0.10", "0.0.9"]
    assert f"url={__version__}/index.html" in (site / "index.html").read_text()
    assert f"<title>tokenlabel {__version__}</title>" in (site / __version__ / "index.html").read_text()


@pytest.mark.skipif(
    CHROMIUM is None and "TOKENLABEL_BROWSER_TESTS" not in os.environ,
    reason="no Chromium here (Debian's package chromium)",
)
def test_it_is_read_from_a_folder_without_a_network(site: Path, tmp_path: Path) -> None:
    with open_browser() as browser:
        browser.open(site / __version__ / "index.html")
        assert browser.evaluate("document.images.length") > 0
        assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        menu = browser.evaluate("document.querySelectorAll('.md-nav--primary a.md-nav__link').length")
        browser.open(site / __version__ / "api.html")
        assert browser.evaluate("document.querySelector('h3 .doc-object-name') !== null")
        browser.screenshot(tmp_path / "api.png")
        asked = [address for address in browser.requests if not address.startswith(("file:", "data:", "blob:"))]
    assert menu >= 20
    assert asked == []
