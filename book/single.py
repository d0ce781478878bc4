"""The whole book as one page, joined from the pages of the built site.

Ids get the name of their page in front, links between pages become links
inside the one page, and folds are open. The reference of the package stays on
the site: one looks things up there while programming.
"""

import html
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from posixpath import dirname, join, normpath

from book import contents

SITE = contents.ROOT / "_build" / "html"
TARGET = contents.ROOT / "_build" / "print"
LEFT_OUT = ("api",)
TITLE = "The DeepSeek architecture"
ABOUT = (
    "The executable book on paper. Listings in two languages stand one below "
    "the other, hints and solutions are open, explorers show the state in "
    "which they start, and code that only draws a figure is left out. The "
    "notebooks and the reference of the package are on the site."
)
ARTICLE = re.compile(r'<article class="bd-article">(.*)</article>', re.S)
SHEET = re.compile(r'<link\b[^>]*\bhref="[^"]*?(_static/[^"?]+\.css)')
SCRIPT = re.compile(r"(<script\b.*?</script>)", re.S)
TAG = re.compile(r"<[a-zA-Z][^>]*>")
OWN = re.compile(r'(\s(?:id|for|name)=")([^"]+)')
LABELS = re.compile(r'(\saria-(?:controls|describedby|labelledby)=")([^"]+)')
LINK = re.compile(r'(\s(?:xlink:)?href=")([^"]*)(")')
TITLES = re.compile(r"<h1\b[^>]*>(.*?)</h1>", re.S)
SECTIONS = re.compile(
    r'<section\b[^>]*\bid="([^"]+)"[^>]*>(?:\s*<span[^>]*></span>)*'
    r"\s*<h2\b[^>]*>(.*?)</h2>",
    re.S,
)
HEADER_LINK = re.compile(r'<a class="headerlink".*?</a>', re.S)
# a caption and the pages below it
Part = tuple[str, list[str]]


def slug(page: str) -> str:
    """Name a page in ids: its path with dashes."""
    return page.replace("/", "-")


def relink(address: str, page: str, known: Sequence[str]) -> str | None:
    """Turn an address on `page` into one of the single page, if it has one."""
    if re.match(r"[a-z]+:", address):
        return address
    path, _, part = address.partition("#")
    target = normpath(join(dirname(page), path)) if path else f"{page}.html"
    name = target.removesuffix(".html")
    if name not in known:
        return None
    return f"#{slug(name)}" + (f"--{part}" if part else "")


def rename(tag: str, page: str, known: Sequence[str]) -> str:
    """Make the ids of one tag those of its page and lead its links there."""
    start = f"{slug(page)}--"

    def link(match: re.Match) -> str:
        found = relink(match[2], page, known)
        return "" if found is None else match[1] + found + match[3]

    tag = OWN.sub(rf"\g<1>{start}\g<2>", tag)
    tag = LABELS.sub(
        lambda m: m[1] + " ".join(start + name for name in m[2].split()), tag
    )
    tag = tag.replace("url(#", f"url(#{start}")
    if tag.startswith("<details"):
        tag = tag.replace("<details", "<details open", 1)
    return LINK.sub(link, tag)


def article(text: str, page: str, known: Sequence[str]) -> str:
    """Return what a page says, ready to stand beside others."""
    found = ARTICLE.search(text)
    if not found:
        raise ValueError(f"{page} has no article")
    parts = SCRIPT.split(HEADER_LINK.sub("", found[1]))
    for place in range(0, len(parts), 2):
        parts[place] = TAG.sub(
            lambda match: rename(match[0], page, known), parts[place]
        )
    return "".join(parts)


def plan() -> list[Part]:
    """List the parts with their pages, the front page first."""
    parts = [("", ["intro"])]
    for part in contents.toc()["parts"]:
        pages = [entry["file"] for entry in part["chapters"]]
        kept = [page for page in pages if page not in LEFT_OUT]
        parts.append((part["caption"], kept))
    return parts


def part_line(caption: str) -> str:
    """Name the part in which the book is."""
    return f'<p class="ds-part">{html.escape(caption)}</p>' * bool(caption)


def entry(name: str, words: str) -> str:
    """Return one line of the table of contents, with room for its page."""
    return f'<a href="#{name}"><span>{words}</span><b data-at="{name}"></b></a>'


def lines(page: str, text: str) -> str:
    """Return the entries of one page and of its sections."""
    title = TITLES.search(text)
    if not title:
        raise ValueError(f"{page} has no title")
    below = ""
    if page.startswith("chapters/"):
        found = SECTIONS.findall(text)
        below = "".join(f"<li>{entry(*section)}</li>" for section in found)
    return f"<li>{entry(slug(page), title[1])}<ul>{below}</ul></li>"


def front(parts: list[Part], texts: dict[str, str]) -> str:
    """Return the title, a word about this edition, and the contents."""
    lists = ""
    for caption, pages in parts:
        found = "".join(lines(page, texts[page]) for page in pages)
        lists += f"{part_line(caption)}<ul>{found}</ul>"
    return (
        f'<header class="ds-title"><p>{TITLE}</p><p>{ABOUT}</p></header>'
        f'<nav class="ds-contents"><h1>Contents</h1>{lists}</nav>'
    )


def assemble(site: Path, parts: list[Part]) -> str:
    """Return the single page."""
    names = [page for _, pages in parts for page in pages]
    raw = {p: (site / f"{p}.html").read_text(encoding="utf8") for p in names}
    texts = {page: article(text, page, names) for page, text in raw.items()}
    found = (sheet for text in raw.values() for sheet in SHEET.findall(text))
    sheets = "".join(
        f'<link rel="stylesheet" href="{sheet}"/>'
        for sheet in dict.fromkeys(found)
    )
    body = ""
    for caption, pages in parts:
        for place, page in enumerate(pages):
            body += f'<article class="bd-article" id="{slug(page)}">'
            body += "" if place else part_line(caption)
            body += f"{texts[page]}</article>\n"
    return (
        '<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light">'
        f'<head><meta charset="utf-8"/><title>{TITLE}</title>'
        '<meta name="viewport" content="width=device-width"/>'
        f"{sheets}</head>"
        '<body class="ds-single"><main class="bd-content">'
        f'<div class="bd-article-container">{front(parts, texts)}\n{body}'
        "</div></main></body></html>\n"
    )


def write(site: Path, target: Path, parts: list[Part]) -> Path:
    """Write the single page with the style sheets and fonts that it needs."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        site / "_static",
        target / "_static",
        ignore=shutil.ignore_patterns("*.js", "*.map", "*.txt", "*.html"),
    )
    page = target / "dsarch.html"
    page.write_text(assemble(site, parts), encoding="utf8")
    return page
