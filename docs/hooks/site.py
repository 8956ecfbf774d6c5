"""What mkdocs cannot know: the options page, and the repository's files outside docs/ that pages link to.

A link that leaves docs/ leads to a page made of that file, so that the site is whole without the repository.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import options_page  # noqa: E402

# files with a page of their own in the navigation; every other one becomes files/<its path>
NAMED = {"bench/README.md": "bench.md", "data/README.md": "data.md", "CONTRIBUTING.md": "contributing.md"}
ALSO = ("data/base/README.md", "launch/k8s/README.md")  # in the navigation, whoever links to them
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
MARK = re.compile(r"^\s*<!-- (?:run|checked|not ours)[ \d]* -->\n", re.M)  # tests/docs reads them
LANGUAGES = {".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".yml": "yaml", ".py": "python", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made: the options, and every file outside docs/ that some page links to."""
    files.append(File.generated(config, "options.md", content=options_page.markdown(ROOT / "conf")))
    waiting = [*NAMED, *ALSO]
    for file in files.documentation_pages():
        waiting += _outside(file.src_uri, file.content_string)
    seen: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        text = _page(source)
        files.append(File.generated(config, _place(source), content=text))
        waiting += _outside(_place(source), text, source)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to the repository's files into links to their pages."""
    return _relinked(markdown, page.file.src_uri, _source_of(page.file.src_uri))


def _relinked(markdown: str, place: str, source: str) -> str:
    def link(match: re.Match[str]) -> str:
        target, mark, anchor = match[2].partition("#")
        found = _target(source, target)
        if found is None:
            return match[0]
        page = posixpath.relpath(_page_of(found), posixpath.dirname(place) or ".")
        return f"{match[1]}{page}{mark}{anchor}{match[3]}"

    return "".join(part if code else LINK.sub(link, MARK.sub("\n", part)) for code, part in _parts(markdown))


def _outside(place: str, markdown: str, source: str | None = None) -> list[str]:
    """Repository paths outside docs/ that a page links to."""
    source = source or f"docs/{place}"
    text = "".join(part for code, part in _parts(markdown) if not code)
    found = [_target(source, match[2].partition("#")[0]) for match in LINK.finditer(text)]
    return [path for path in found if path is not None and not path.startswith("docs/")]


def _target(source: str, link: str) -> str | None:
    """The repository path that a link of a file means; None for addresses and anchors."""
    if not link or re.match(r"[a-z]+:", link) or link == "options.md":
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if not (ROOT / path).exists():
        return None  # mkdocs says so, with the page
    if path.startswith(".."):
        raise PluginError(f"{source}: {link} lies outside the repository")
    return path


def _page_of(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else _place(path)


def _place(source: str) -> str:
    """Where the page of a repository file lies in the site."""
    if source in NAMED:
        return NAMED[source]
    if (ROOT / source).is_dir():
        source = f"{source.rstrip('/')}/README.md"
    return f"files/{source}" if source.endswith(".md") else f"files/{source}.md"


def _source_of(place: str) -> str:
    """The repository file a page was made of."""
    if place.startswith("files/"):
        path = place.removeprefix("files/")
        return path if (ROOT / path).exists() else path.removesuffix(".md")
    return {page: source for source, page in NAMED.items()}.get(place, f"docs/{place}")


def _page(source: str) -> str:
    path = ROOT / source
    if path.is_dir():
        readme = path / "README.md"
        return readme.read_text(encoding="utf-8") if readme.is_file() else _listing(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# {source}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    lines = "\n".join(f"- [{name}]({name})" for name in names)
    return f"# {folder.relative_to(ROOT)}\n\n{lines}\n"


def _parts(markdown: str) -> list[tuple[bool, str]]:
    """The text in order as (whether it is fenced code, text)."""
    parts, code, lines = [], "", []
    for line in markdown.splitlines(keepends=True):
        fence = re.match(r"\s*(`{3,})", line)
        closes = bool(code) and fence is not None and fence[1].startswith(code) and line.strip() == fence[1]
        if fence and (closes or not code):
            if not code:
                parts.append((False, "".join(lines)))
                lines, code = [line], fence[1]
                continue
            parts.append((True, "".join([*lines, line])))
            lines, code = [], ""
            continue
        lines.append(line)
    return [*parts, (bool(code), "".join(lines))]
