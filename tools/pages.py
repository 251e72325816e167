"A page of the documentation: its prose, what its cells have stored, and what of it was recomputed."

import json
import re

import numpy as np
from kept import ROOT, Wide

NUMBER = r"[−-]?\d[\d,]*(?:\.\d+)?"
SETTING = re.compile(
    r"α = [\d.]+(?:, [\d.]+)+(?: and [\d.]+)?|α\s*=\s*(?:± )?[−-]?\d[\d.]*(?: (?:and|or) [01]\b[.\d]*)?"
    r"|α from [−\d.]+ (?:up )?to [\d.]+|[Pp]rotocol 2|section \d|figure \d|nearest to 0\.5|α near 1|[,;] at 0\.5\)"
    r"|takes 0\.5 or|leaves 0\.5 as|steps of 0\.1|\| half \| 0\.5 \||\| 1: no averaging|it is 0, which|or 0\.5 without"
    r'|"an icon of a \d+"|Python 3\.\d+(?: and 3\.\d+)*|(?:before|from) 1\.0|is below 0\.05'
    r"|lr\s*=?\s*\d[\de.-]*|learning rates? (?:of )?\d[\de.-]*|\d+e-\d|seeds?\s*=?\s*\d+|decay [\d.]+|β = [\d.]+"
    r"|k = [\d, and]+|\d+ epochs|(?:arXiv )?\d{4}\.\d{4,5}|ViT-\S+|[BL]/1[46]\S*|95 %(?: intervals?)?"
    r"|Tables? \d(?: and \d)?|ResNet-\d+|\(20\d\d\)|20\d\d|(?m:^## \d\.)|(?s:\$\$.*?\$\$)|\$[^$]*\$|0…1|`[^`]*`"
    r"|\]\([^)]*\)|https?://\S+|Food-101|CIFAR-\d+|SUN397|Apache 2.0"
)  # of prose: what names a setting, a paper or a thing


class Page:
    "The prose and the stored outputs of a notebook."

    def __init__(self, name, cells):
        self.name, self.cells = name, cells
        of = lambda kind: "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == kind)
        self.prose, self.code = of("markdown"), of("code")
        self.reached, self.wrong, self.tables = set(), [], set()

    def compare(self, what, printed, values):
        values = np.ravel(values).tolist() if not isinstance(values, list) else values
        if len(printed) != len(values):
            return self.wrong.append(f"{what}: {len(printed)} numbers printed, {len(values)} recomputed")
        for p, v in zip(printed, values):
            digits = len(p.partition(".")[2])
            said = float(p.replace("−", "-").replace(",", ""))
            margin = 1.0 if isinstance(v, Wide) else 0.5 * 10.0**-digits + getattr(v, "margin", 0) + 1e-9
            if not abs(said - v) <= margin:
                self.wrong.append(f"{what}: printed {p}, recomputed {v:.{digits + 2}f}")

    def says(self, template, *values):
        "A sentence of the prose, {} for each number."
        pattern = re.escape(template).replace(r"\{\}", f"({NUMBER})")
        found = list(re.finditer(pattern, self.prose))
        if len(found) != 1:
            return self.wrong.append(f"{len(found)} times in the prose: {template}")
        self.reached |= {found[0].start(i + 1) for i in range(len(values))}
        flat = [x for v in values for x in (v if isinstance(v, list) else [v])]
        self.reached |= {found[0].start(i + 1) for i in range(found[0].re.groups)}
        self.compare(template, list(found[0].groups()), flat)

    def holds(self, words, truth):
        "Words of the prose that stand for a number."
        place = self.prose.find(words)
        self.reached |= {place + m.start() for m in re.finditer(NUMBER, words)}
        if place < 0:
            self.wrong.append(f"not in the prose: {words}")
        elif not truth:
            self.wrong.append(f"not so: {words}")

    def entries(self, start):
        "Entries of the table that a cell, found by a line of its source, has stored; without its row names."
        found = [c for c in self.cells if c["cell_type"] == "code" and start in "".join(c["source"])]
        if len(found) != 1:
            return self.wrong.append(f"{len(found)} cells with {start}")
        self.tables.add(id(found[0]))
        shown = ["".join(o["data"]["text/html"]) for o in found[0]["outputs"] if "text/html" in o.get("data", {})]
        return [e.strip() for e in re.findall(r"<td>(.*?)</td>", shown[0], re.S)]

    def printed(self, start):
        "Those entries that are numbers."
        entries = self.entries(start)
        return entries and [e for e in entries if re.fullmatch(NUMBER, e)]

    def shows(self, start, *values):
        "A stored table, row by row; words in it are passed over."
        printed = self.printed(start)
        flat = [x for v in values for x in (v if isinstance(v, list) else [v])]
        if printed is not None:
            self.compare(f"table of {start}", printed, flat)

    def quotes(self, start, *values):
        "A stored table whose entries hold several numbers, such as an estimate and its interval; row by row."
        entries = self.entries(start)
        if entries is not None:
            self.compare(f"table of {start}", re.findall(NUMBER, " ".join(entries)), [x for v in values for x in v])

    def said(self, words):
        "Whether a cell has printed some words."
        return any(words in "".join(o.get("text", "")) for c in self.cells for o in c.get("outputs", []))

    def prints(self, template, *values):
        "A line that a cell has printed."
        text = "\n".join("".join(o.get("text", "")) for c in self.cells for o in c.get("outputs", []))
        found = re.findall(re.escape(template).replace(r"\{\}", f"({NUMBER})"), text)
        if len(found) != 1:
            return self.wrong.append(f"{len(found)} times among what is printed: {template}")
        self.compare(
            template,
            [found[0]] if isinstance(found[0], str) else list(found[0]),
            [x for v in values for x in (v if isinstance(v, list) else [v])],
        )

    def numbers(self):
        "Numbers of the prose, recomputed, names of settings, not reached: lists of (number, words around it)."
        settings = [m.span() for m in SETTING.finditer(self.prose)]
        out = [], [], []
        for m in re.finditer(rf"(?<![\w.^#/]){NUMBER}(?![\w/])", self.prose):
            named = any(a <= m.start() < b for a, b in settings)
            around = " ".join(self.prose[max(0, m.start() - 30) : m.end() + 30].split())
            out[0 if m.start() in self.reached else 1 if named else 2].append((m[0], around))
        return out

    def stored(self):
        "How many stored tables of numbers there are, and how many were recomputed."
        own = [c for c in self.cells if "provenance_table()" not in "".join(c["source"])]
        tables = [c for c in own for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
        return len(tables), len(self.tables)


def read_page(name):
    "A notebook's page, or the README's, whose prose is the front page's."
    if name == "README":
        return Page(name, [dict(cell_type="markdown", source=(ROOT / "README.md").read_text(encoding="utf-8"))])
    return Page(name, json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"])
