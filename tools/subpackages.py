#!/usr/bin/env python
"""Write what follows from the folders of nbs/api: the API's sidebar, and the list of modules on each opening page.

Both keep the core and its extensions (nbs/api/extensions.yml) apart.

  subpackages.py            write
  subpackages.py --check    only say whether they are in step
"""
import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS, SIDEBAR = ROOT / "nbs", ROOT / "_quarto.yml"
# lowest first: a subpackage imports only from those before it
SUBPACKAGES = "base weights stats data models infer analysis train methods bench show shell".split()
BUILT = r"(?<=      - section: API\n        contents:\n)"
SECTION = re.compile(BUILT + r".*?(?=^      - section: Help)", re.M | re.S)
# of dicts with `name`, `what` it does, and `modules`; a subpackage stands for all of its modules
EXTENSIONS = yaml.safe_load((NBS / "api/extensions.yml").read_text())


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


def tier(subpackage, path):
    "Name of the extension that a notebook belongs to, or 'core'."
    names = {subpackage, f"{subpackage}.{path.stem[3:]}"}
    return next((e["name"] for e in EXTENSIONS if names & set(e["modules"])), "core")


def listing(subpackage):
    "The cell of an opening page that lists the modules: those of the core, then those of extensions."
    mixed = tier(subpackage, folder(subpackage) / "index.ipynb") == "core"
    core = [f"| {'core ' * mixed}module | what it does |", "|---|---|"]
    more = ["| extension module | what it does | extension |", "|---|---|---|"]
    for path in modules(subpackage):
        (title, subtitle), name = heading(path), tier(subpackage, path)
        row = f"| [{title}]({path.name}) | {subtitle} |"
        if mixed and name != "core":
            more.append(f"{row} {name} |")
        else:
            core.append(row)
    return "\n\n".join(["## Modules", *("\n".join(table) for table in (core, more) if len(table) > 2)])


def opening(subpackage):
    "An opening page with its list as it should be."
    nb = read(folder(subpackage) / "index.ipynb")
    cell, = [c for c in nb["cells"] if source(c).startswith("## Modules")]
    cell["source"] = listing(subpackage).splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def section(name, pages):
    "Lines of a section of the sidebar; none without pages."
    if pages:
        yield f"          - section: {name}\n            contents:"
        yield from (f"              - {p.relative_to(NBS).as_posix()}" for p in pages)


def entries(elsewhere):
    "The API's part of the sidebar: what to read first, the core by subpackages, the extensions; no page twice."
    pages = {w: [folder(w) / "index.ipynb", *modules(w)] for w in SUBPACKAGES if w != "methods"}

    def those_of(name, subpackage):
        return [p for p in pages[subpackage]
                if tier(subpackage, p) == name and p.relative_to(NBS).as_posix() not in elsewhere]

    yield from (f"          - api/{page}.ipynb" for page in ("reading", "index", "architecture"))
    yield "      - section: Core\n        contents:"
    for subpackage in pages:
        yield from section(subpackage, those_of("core", subpackage))
    yield from (f"          - {p.relative_to(NBS).as_posix()}" for p in sorted((NBS / "api").glob("[0-9]*.ipynb")))
    yield "      - section: Extensions\n        contents:"
    for extension in EXTENSIONS:
        name = extension["name"]
        yield from section(name, [page for subpackage in pages for page in those_of(name, subpackage)])


def wanted():
    "File -> its text as it should be."
    text = SIDEBAR.read_text()
    sidebar = SECTION.sub(lambda _: "\n".join(entries(SECTION.sub("", text))) + "\n", text)
    listed = [subpackage for subpackage in SUBPACKAGES if subpackage != "methods"]  # whose page is a gallery
    return {folder(subpackage) / "index.ipynb": opening(subpackage) for subpackage in listed} | {SIDEBAR: sidebar}


def main():
    stale = {p: text for p, text in wanted().items() if p.read_text(encoding="utf-8") != text}
    if "--check" in sys.argv[1:]:
        names = ", ".join(p.relative_to(ROOT).as_posix() for p in stale)
        sys.exit(f"not in step with the folders of nbs/api: {names}; run: make export" if stale else None)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
