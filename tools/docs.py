#!/usr/bin/env python
"""Build the documentation site into _docs/, without Quarto and without a request to any host.

nbdev processes the notebooks into _proc/ as for Quarto; smalldocs renders them from the same _quarto.yml.
What smalldocs leaves to other hosts or doesn't read is settled here: mathematics becomes MathML, themes lose
their web fonts, pages take the names that nbdev's links use, links to the published site stay within this one,
earlier addresses lead to the pages that name them as aliases, and pictures become files with a width and a height,
so that pages are small and don't move while they load.
"""
import base64
import gc
import os
import re
import shutil
import struct
import sys
from hashlib import sha256
from html import escape, unescape
from pathlib import Path

import smalldocs.config
import smalldocs.site
from latex2mathml.converter import convert
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
MATH = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
FONT = re.compile(r"@import url\([^)]*fonts\.googleapis\.com[^)]*\);?")
DUNDER = re.compile(r"^(#+ .*\b)__(\w+)__$", re.M)  # a method's name in a heading, which would turn bold
TABLE = '<div class="sd-table"'  # a wide one scrolls, so that the keyboard must reach it
REACHED = TABLE + ' tabindex="0" role="group" aria-label="Table"'
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
CODE = re.compile(r'(?<=<code class="sourceCode )(\w+">)(.*?)(?=</code>)', re.S)
SPAN = re.compile(r"<span[^>]*>|</span>")
LINK = re.compile(r"\[(`[^`\]]+`)\]\(https://[^)\s]*\)")  # nbdev's, of a name in backticks
# nbdev's, in copies for other readers than browsers
NOISE = re.compile(r'\{target="_blank"[^}]*\}|<!-- WARNING.*?-->\n\n')
PICTURE = re.compile(r'(<img src=")data:image/png;base64,([^"]*)"')
TWICE = 6000  # dots a meter: a picture with more has two for each pixel of the page
# smalldocs warns that it does not read them
SETTLED = re.compile(r"theme fonts\.scss|html-math-method|output-file|grid|aliases")
MOVED = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><meta http-equiv="refresh" content="0; url={href}">
<link rel="canonical" href="{href}"></head><body><p>This page is now <a href="{href}">{title}</a>.</p></body></html>
"""


def unlinked(text):
    "Markdown without the links that nbdev writes into the comments of signatures."
    return FENCE.sub(lambda m: LINK.sub(r"\1", m[0]), text)


def formula(found):
    "MathML of a formula; a wide one scrolls, so that the keyboard must reach it."
    display = found[1] == "display"
    math = convert(unescape(found[2]), display="block" if display else "inline")
    return math.replace("<math ", '<math tabindex="0" ', 1) if display else math


def lines(found):
    "Code with an element for each line, as Quarto writes it: styles.css marks those that wrap."
    opened, written = [], []
    for line in found[2].split("\n"):
        begun = "".join(opened)
        for tag in SPAN.findall(line):
            opened.pop() if tag == "</span>" else opened.append(tag)
        written.append(f"<span>{begun}{line}{'</span>' * len(opened)}</span>")
    return found[1] + "\n".join(written)


def size(png):
    "Width and height of a picture on the page."
    dots = re.search(rb"pHYs(.{4})", png, re.S)
    scale = 2 if dots and struct.unpack(">I", dots[1])[0] > TWICE else 1
    return [round(n / scale) for n in struct.unpack(">II", png[16:24])]


class Site(smalldocs.site.Site):
    "A site whose pages need no other host."

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pictures = {}  # path in the site -> content

    def read(self, src):
        page = super().read(src)
        page.out = page.out.with_name(page.front.get("output-file", page.out.name))
        page.body = DUNDER.sub(r"\1\_\_\2\_\_", unlinked(page.body))
        return page

    def find_page(self, target):
        return next((p for p in self.pages.values() if p.out == target), None) or super().find_page(target)

    def within(self, href):
        "A link to the published site as one from the root of this one."
        base = self.project.website["site-url"]
        return "/" + href.removeprefix(base).lstrip("/") if href.startswith(base) else href

    def resolve(self, href, page, record=True):
        return super().resolve(self.within(href), page, record)

    def llms_link(self, href, page):
        return super().llms_link(self.within(href), page)

    def llms_copy(self, page):
        text, files = super().llms_copy(page)
        return NOISE.sub("", unlinked(text)), files

    def picture(self, page, found):
        "A picture within a page as one of a file."
        png = base64.b64decode(found[2])
        path = page.out.parent / f"{page.out.stem}_files" / f"{sha256(png).hexdigest()[:12]}.png"
        self.pictures[path] = png
        width, height = size(png)
        return f'{found[1]}{path.parent.name}/{path.name}" width="{width}" height="{height}"'

    def render_page(self, page):
        super().render_page(page)
        page.html = PICTURE.sub(lambda found: self.picture(page, found), page.html)
        page.html = CODE.sub(lines, MATH.sub(formula, page.html)).replace(TABLE, REACHED)
        page.env["math"] = False


def write_aliases(site):
    "Pages at earlier addresses, which lead to those that name them under `aliases`."
    for page in site.pages.values():
        for alias in page.front.get("aliases", []):
            old = site.out / alias.lstrip("/")
            old.parent.mkdir(exist_ok=True)
            href = os.path.relpath(site.out / page.out, old.parent)
            old.write_text(MOVED.format(title=escape(page.title), href=href), encoding="utf-8")


def build():
    "Build the site; returns what smalldocs warned of."
    refresh_quarto_yml()
    site = Site(smalldocs.config.load(proc_nbs(n_workers=0, force=True)), quiet=True)
    site.build()
    write_aliases(site)
    for path, png in site.pictures.items():
        (site.out / path).parent.mkdir(parents=True, exist_ok=True)
        (site.out / path).write_bytes(png)
    for css in site.out.glob("site_libs/themes/*.css"):
        css.write_text(FONT.sub("", css.read_text()))
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    site.out.rename(ROOT / "_docs")
    return [w for w in site.warnings if not SETTLED.search(w)]


if __name__ == "__main__":
    os.chdir(ROOT)
    # this tree, whichever is installed, and what pages of results share
    sys.path[:0] = [str(ROOT), str(ROOT / "nbs/reproductions")]
    found = build()
    gc.freeze()  # or IPython would go through all there is once for each page, as its shells end
    sys.exit("\n".join(found) or None)
