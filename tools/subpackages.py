#!/usr/bin/env python
"""Write what follows from the folders of nbs/api: the API's sidebar, and the list of modules on each opening page.

  subpackages.py            write
  subpackages.py --check    only say whether they are in step
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS, SIDEBAR = ROOT / "nbs", ROOT / "_quarto.yml"
# lowest first: a subpackage imports only from those before it
SUBPACKAGES = "base weights stats data models infer analysis train methods bench show shell".split()
BUILT = r"(?<=      - section: API\n        contents:\n)"
SECTION = re.compile(BUILT + r".*?(?=^      - section: )", re.M | re.S)


def folder(subpackage):
    "Folder of a subpackage's notebooks; those of methods are pages of their own, beside the API."
    return NBS / "methods" if subpackage == "methods" else NBS / "api" / subpackage


def modules(subpackage):
    "Notebooks of a subpackage in order, without its opening page; methods in the order of the sidebar."
    listed = re.findall(r"- (methods/\S+)", SIDEBAR.read_text()) if subpackage == "methods" else []
    found = [NBS / name for name in listed] or sorted(folder(subpackage).glob("*.ipynb"))
    return [p for p in found if p.stem != "index"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def heading(path):
    "Title and subtitle of a notebook."
    title, subtitle = re.match(r"# (.+)\n+> (.+)", source(read(path)["cells"][0])).groups()
    return title, subtitle


def listing(subpackage):
    "The cell of an opening page that lists the modules."
    headings = [(path.name, *heading(path)) for path in modules(subpackage)]
    rows = [f"| [{title}]({name}) | {subtitle} |" for name, title, subtitle in headings]
    return "\n".join(["## Modules", "", "| module | what it does |", "|---|---|", *rows])


def opening(subpackage):
    "An opening page with its list as it should be."
    nb = read(folder(subpackage) / "index.ipynb")
    cell, = [c for c in nb["cells"] if source(c).startswith("## Modules")]
    cell["source"] = listing(subpackage).splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def entries(elsewhere):
    "The API's part of the sidebar, without pages that are elsewhere in it: a section per subpackage, then the rest."
    yield "          - api/index.ipynb"
    yield "          - api/architecture.ipynb"
    for subpackage in SUBPACKAGES:
        if subpackage != "methods":
            yield f"          - section: {subpackage}\n            contents:"
            pages = [p.relative_to(NBS).as_posix() for p in [folder(subpackage) / "index.ipynb", *modules(subpackage)]]
            yield from (f"              - {p}" for p in pages if p not in elsewhere)
    yield from (f"          - {p.relative_to(NBS).as_posix()}" for p in sorted((NBS / "api").glob("[0-9]*.ipynb")))


def wanted():
    "File -> its text as it should be."
    text = SIDEBAR.read_text()
    sidebar = SECTION.sub(lambda _: "\n".join(entries(SECTION.sub("", text))) + "\n", text)
    return {folder(subpackage) / "index.ipynb": opening(subpackage) for subpackage in SUBPACKAGES} | {SIDEBAR: sidebar}


def main():
    stale = {p: text for p, text in wanted().items() if p.read_text(encoding="utf-8") != text}
    if "--check" in sys.argv[1:]:
        names = ", ".join(p.relative_to(ROOT).as_posix() for p in stale)
        sys.exit(f"not in step with the folders of nbs/api: {names}; run: make export" if stale else None)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
