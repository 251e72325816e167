#!/usr/bin/env python
"""What follows from the folders of nbs/api: the API's part of the sidebar, and the list of rooms on each opening page.

  wings.py            write
  wings.py --check    only say whether they are in step
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS, SIDEBAR = ROOT / "nbs", ROOT / "_quarto.yml"
# lowest first: a wing imports only from those before it
WINGS = "base weights stats data models infer analysis train methods bench show shell".split()
IMPORT = re.compile(r"\bfrom wiseft\.(\w+)")
BUILT = r"(?<=      - section: How it is built\n        contents:\n)"
SECTION = re.compile(BUILT + r".*?(?=^      - section: )", re.M | re.S)


def folder(wing):
    "Where a wing's notebooks lie; a page a method is read by itself, beside the API."
    return NBS / "methods" if wing == "methods" else NBS / "api" / wing


def rooms(wing):
    "The notebooks of a wing but for its opening page, in their order; methods in that of the sidebar."
    listed = re.findall(r"- (methods/\S+)", SIDEBAR.read_text()) if wing == "methods" else []
    found = [NBS / name for name in listed] or sorted(folder(wing).glob("*.ipynb"))
    return [p for p in found if p.stem != "index"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def heading(path):
    "Title and subtitle of a notebook."
    title, subtitle = re.match(r"# (.+)\n+> (.+)", source(read(path)["cells"][0])).groups()
    return title, subtitle


def imported(wing):
    "The wings whose names the modules of a wing import."
    cells = [source(c) for path in rooms(wing) for c in read(path)["cells"] if c["cell_type"] == "code"]
    names = {name for cell in cells if re.search(r"^#\| *export", cell, re.M) for name in IMPORT.findall(cell)}
    return [w for w in WINGS if w in names and w != wing]


def linked(wing, others):
    "Wings as links from the opening page of one of them."
    up = "../api/{}/index.ipynb" if wing == "methods" else "../{}/index.ipynb"
    links = {w: "../../methods/index.ipynb" if w == "methods" else up.format(w) for w in others}
    return ", ".join(f"[{w}]({link})" for w, link in links.items()) or "none"


def listing(wing):
    "The cell of an opening page that lists the wing's rooms, and which wings it stands on."
    users = [w for w in WINGS if wing in imported(w)]
    rows = [f"| [{title}]({path.name}) | {subtitle} |" for path in rooms(wing) for title, subtitle in [heading(path)]]
    before = " and from every wing before it" if WINGS.index(wing) else ""
    may = f"A module here may import from rooms above it in this list{before}." if wing != "methods" else ""
    ends = f"{may} Imports from: {linked(wing, imported(wing))}. Imported by: {linked(wing, users)}.".strip()
    return "\n".join(["## Rooms", "", "| room | what it is for |", "|---|---|", *rows, "", ends])


def opening(wing):
    "An opening page with its list as it should be."
    nb = read(folder(wing) / "index.ipynb")
    cell, = [c for c in nb["cells"] if source(c).startswith("## Rooms")]
    cell["source"] = listing(wing).splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def entries(elsewhere):
    "The API's part of the sidebar, less what is elsewhere in it: a section for each wing, then what is on top."
    yield "          - api/index.ipynb"
    for wing in WINGS:
        if wing != "methods":
            yield f"          - section: {wing}\n            contents:"
            pages = [p.relative_to(NBS).as_posix() for p in [folder(wing) / "index.ipynb", *rooms(wing)]]
            yield from (f"              - {p}" for p in pages if p not in elsewhere)
    yield from (f"          - {p.relative_to(NBS).as_posix()}" for p in sorted((NBS / "api").glob("[0-9]*.ipynb")))


def wanted():
    "File -> its text as it should be."
    text = SIDEBAR.read_text()
    sidebar = SECTION.sub(lambda _: "\n".join(entries(SECTION.sub("", text))) + "\n", text)
    return {folder(wing) / "index.ipynb": opening(wing) for wing in WINGS} | {SIDEBAR: sidebar}


def main():
    stale = {p: text for p, text in wanted().items() if p.read_text(encoding="utf-8") != text}
    if "--check" in sys.argv[1:]:
        names = ", ".join(p.relative_to(ROOT).as_posix() for p in stale)
        sys.exit(f"not in step with the folders of nbs/api: {names}; run: make export" if stale else None)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
