"""The site: built strictly, whole without a network, its pictures and options those of the code, its search working."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from support import ROOT, child_env

from yarn_train import config as schema


class _Page(HTMLParser):
    """Addresses that a page loads or links to, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {str(values[name]) for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        elif tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loads.append(str(values["src"]))
        elif tag == "link" and values.get("href"):
            self.loads.append(str(values["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**child_env(), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    found = {}
    for file in site.rglob("*.html"):
        found[file] = _Page()
        found[file].feed(file.read_text(encoding="utf-8"))
    assert len(found) >= 20
    return found


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, _Page]) -> None:
    away = {a for page in pages.values() for a in page.loads if urlsplit(a).scheme not in ("", "data")}
    assert not away
    sheets = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)[\"' ]*(?:https?:)?//[^)]*", sheets)
    scripts = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.html"))
    assert "mermaid" not in re.findall(r'class="([^"]*)"', scripts)  # its script comes from a network


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, _Page]) -> None:
    broken = []
    for file, page in pages.items():
        if file.name == "404.html":  # its addresses begin at the root of a server
            continue
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            lost = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            if not target.exists() or (lost and parts.fragment != "__top"):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert not broken


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 15
    broken = [link for link in links if not urlsplit(link).scheme and not (ROOT / link.partition("#")[0]).exists()]
    assert not broken


def test_every_option_has_its_place(site: Path, pages: dict[Path, _Page]) -> None:
    page = pages[site / "options.html"]
    assert set(schema.keys()) <= page.anchors
    text = (site / "options.html").read_text(encoding="utf-8")
    assert "pairs with fewer than alpha rotations in L are interpolated fully" in text
    below = text.split('id="rope.factor"')[1].split("<h3")[0]
    assert "<code>16</code>" in below
    assert "number &gt;= 1" in below
    assert all(name in text.split('id="rope.method"')[1].split("<h3")[0] for name in ("ntk_by_parts", "yarn", "pi"))


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    named = re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert len(named) == len(set(named)), "a page that is in the menu twice"
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="{page.stem}.html"' in home or page.stem == "index", f"{page.name} is in no menu"


def _pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "hooks" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _split(svg: str) -> tuple[str, list[float]]:
    """Its text without numbers, and its numbers."""
    number = r"-?\d+\.\d+"
    return re.sub(number, "#", svg), [float(value) for value in re.findall(number, svg)]


@pytest.mark.parametrize("name", ["alpha", "beta", "methods", "ramps", "temperature", "turns"])
def test_pictures_are_those_of_the_code(name: str) -> None:
    shape, numbers = _split(_pictures().CHARTS[name]().svg())
    there_shape, there = _split((ROOT / "docs" / "img" / f"{name}.svg").read_text(encoding="utf-8"))
    assert shape == there_shape, "python docs/hooks/pictures.py draws them again"
    assert numbers == pytest.approx(there, abs=0.15)


def test_the_picture_of_the_ramp_has_the_known_ends() -> None:
    kept = dict(_pictures().ramp("", "by_index").points)
    assert kept[20] == pytest.approx(1.0, abs=1e-6)
    assert kept[21] < 1.0
    assert kept[45] > 1e-3
    assert kept[46] == pytest.approx(0.0, abs=1e-6)
    assert kept[33] == pytest.approx(0.5, abs=1e-5)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000"]


@pytest.mark.skipif(BROWSER is None, reason="needs a headless browser")
def test_search_works_from_the_disk(site: Path) -> None:
    """The page is opened as a file, without a server; what is typed into the search finds the option's place."""
    address = f"file://{site}/index.html?q=spike_factor"
    command = [str(BROWSER), *FLAGS, "--window-size=1400,900", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.search(r'href="file:[^"]*/options\.html[^"]*#train\.spike_factor"', done.stdout)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "rror" in line]
    assert not errors
