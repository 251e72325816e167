"A page of the documentation: its prose, what its cells have stored, and what of it was recomputed."

import json
import re
from functools import cache
from itertools import chain

import numpy as np
from kept import ROOT, Wide

NUMBER = r"[−-]?\d[\d,]*(?:\.\d+)?"
SETTING = re.compile(
    r"α = [\d.]+(?:, [\d.]+)+(?: and [\d.]+)?|α\s*=\s*(?:± )?[−-]?\d[\d.]*(?: (?:and|or) [01]\b[.\d]*)?"
    r"|α from [−\d.]+ (?:up )?to [\d.]+|[Pp]rotocol 2|section \d|figure \d|α near 1"
    r"|(?<!\| )(?<!\()\b0\.5\b(?! points| %| [|(])|steps of 0\.1|\| half \| 0\.5 \||\| 1: no averaging|it is 0, which"
    r'|"an icon of a \d+"|Python 3\.\d+(?:,?(?: and)? 3\.\d+)*|(?:[Bb]efore|from) 1\.0|is below 0\.05'
    r"|lr\s*=?\s*\d[\de.-]*|learning rates? (?:of )?\d[\de.-]*|\d+e-\d|seeds?\s*=?\s*\d+|decay (?:of )?[\d.]+"
    r"|β = [\d.]+|k = [\d, and]+|\d+ epochs|(?:arXiv )?\d{4}\.\d{4,5}|ViT-\S+|[BL]/1[46]\S*|95 %(?: intervals?)?"
    r"|Tables? \d(?: and \d)?|ResNet-\d+|\(20\d\d\)|20\d\d|(?m:^## \d\.)|(?s:\$\$.*?\$\$)|\$[^$]*\$|0…1|`[^`]*`"
    r"|\]\([^)]*\)|https?://\S+|Food-101|CIFAR-\d+|SUN397|Apache 2.0"
)  # of prose: what names a setting, a paper or a thing


# an estimate, in words of its own, and its interval: 1.6 points below (1.3 to 1.9)
INTERVAL = re.compile(
    rf"(?:({NUMBER})[^()\d\n|;]{{0,55}})?\((?:95 % interval )?({NUMBER}) to ({NUMBER})(?=[†,)])"
    rf"|({NUMBER}), ({NUMBER}) to ({NUMBER})"
)


def flat(values):
    return [x for v in values for x in (v if isinstance(v, list) else [v])]


def value(number):
    return float(number.replace("−", "-").replace(",", ""))


def rounds_to(number, said, sign=1):
    "Whether a number of a table, which may have more digits, is what was said."
    digits, shown = (len(x.partition(".")[2]) for x in (said, number))
    margin = 0.5 * 10.0**-digits if shown > digits else 0
    return shown >= digits and abs(value(number) - sign * value(said)) <= margin + 1e-9


def stands_in(row, estimate):
    "Whether an estimate and its interval stand in a row of numbers one after another; or as a loss instead of a gain."
    n = len(estimate)
    parts = [row[i : i + n] for i in range(len(row) - n + 1)]
    turned = [*estimate[:-2], estimate[-1], estimate[-2]]
    same = lambda part, said, sign: all(rounds_to(p, s, sign) for p, s in zip(part, said))
    return any(same(p, estimate, 1) or same(p, turned, -1) for p in parts)


@cache
def rows_of(path):
    "Numbers of each row of the tables, and of each line of text, that a notebook's cells have stored."
    return list(printed_rows(json.loads(path.read_text(encoding="utf-8"))["cells"]))


def printed_rows(cells):
    for output in outputs_of(cells):
        table = "".join(output.get("data", {}).get("text/html", ""))
        for row in re.findall(r"<tr.*?</tr>", table, re.S):
            yield re.findall(NUMBER, " ".join(re.findall(r"<td>(.*?)</td>", row, re.S)))
        for line in text_of(output).splitlines():
            yield re.findall(NUMBER, line)


def outputs_of(cells):
    return chain.from_iterable(c.get("outputs", []) for c in cells)


def text_of(output):
    "What a cell has printed, or shown as Markdown."
    return "".join(output.get("text", output.get("data", {}).get("text/markdown", "")))


class Page:
    "The prose and the stored outputs of a notebook."

    def __init__(self, name, cells):
        self.name, self.cells, self.told = name, cells, []
        of = lambda kind: "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == kind)
        self.prose, self.code = of("markdown"), of("code")
        self.text = "\n".join(map(text_of, outputs_of(cells)))
        self.reached, self.wrong, self.tables = set(), [], set()

    def compare(self, what, printed, values):
        values = np.ravel(values).tolist() if not isinstance(values, list) else values
        if len(printed) != len(values):
            return self.wrong.append(f"{what}: {len(printed)} numbers printed, {len(values)} recomputed")
        for p, v in zip(printed, values):
            digits = len(p.partition(".")[2])
            said = value(p)
            margin = 1.0 if isinstance(v, Wide) else 0.5 * 10.0**-digits + getattr(v, "margin", 0) + 1e-9
            if not abs(said - v) <= margin:
                self.wrong.append(f"{what}: printed {p}, recomputed {v:.{digits + 2}f}")

    def intervals(self):
        "Estimates with intervals in the prose: a row of a table shows them, here or on a page that this one links to."
        own, settings = list(printed_rows(self.cells)), self.settings()
        for m in INTERVAL.finditer(self.prose):
            estimate = [x for x in m.groups() if x]
            places = {m.start(i) for i in range(1, 7) if m[i]}
            if places <= self.reached or any(a <= m.start() < b for a, b in settings):
                continue  # a template holds it, or no data here tell it
            self.reached |= places
            linked = chain.from_iterable(map(rows_of, self.links()))
            if not any(stands_in(row, estimate) for row in chain(own, linked)):
                self.wrong.append(f"in no row of a table: {m[0]})")

    def unchecked(self):
        "Numbers with decimals or a unit that neither a template nor a table has reached."
        for number, around in self.numbers()[2]:
            if "." in number or re.search(re.escape(number) + r"(?: to [\d.]+| and [\d.]+)? ?(?:%|points?\b)", around):
                self.wrong.append(f"nothing checks {number}: … {around} …")

    def links(self):
        "Notebooks that the prose links to."
        here = (ROOT / "nbs" / self.name).parent
        paths = [here / link for link in dict.fromkeys(re.findall(r"\]\(([^)#:]+\.ipynb)", self.prose))]
        return [p for p in paths if p.exists()]

    def settings(self):
        "Where the prose names settings, or tells what no data here do."
        told = chain.from_iterable(re.finditer(re.escape(words), self.prose) for words in self.told)
        return [m.span() for m in chain(SETTING.finditer(self.prose), told)]

    def says(self, template, *values):
        "A sentence of the prose, {} for each number."
        pattern = re.escape(template).replace(r"\{\}", f"({NUMBER})")
        found = list(re.finditer(pattern, self.prose))
        if len(found) != 1:
            return self.wrong.append(f"{len(found)} times in the prose: {template}")
        self.reached |= {found[0].start(i + 1) for i in range(found[0].re.groups)}
        self.compare(template, list(found[0].groups()), flat(values))

    def holds(self, words, truth):
        "Words of the prose that stand for a number."
        place = self.prose.find(words)
        self.reached |= {place + m.start() for m in re.finditer(NUMBER, words)}
        if place < 0 and words not in self.text:
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
        if printed is not None:
            self.compare(f"table of {start}", printed, flat(values))

    def quotes(self, start, *values):
        "A stored table whose entries hold several numbers, such as an estimate and its interval; row by row."
        entries = self.entries(start)
        if entries is not None:
            self.compare(f"table of {start}", re.findall(NUMBER, " ".join(entries)), flat(values))

    def said(self, words):
        "Whether a cell has printed some words."
        return words in self.text

    def prints(self, template, *values):
        "A line that a cell has printed."
        found = list(re.finditer(re.escape(template).replace(r"\{\}", f"({NUMBER})"), self.text))
        if len(found) != 1:
            return self.wrong.append(f"{len(found)} times among what is printed: {template}")
        self.compare(template, list(found[0].groups()), flat(values))

    def numbers(self):
        "Numbers of the prose, recomputed, names of settings, not reached: lists of (number, words around it)."
        settings, out = self.settings(), ([], [], [])
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
