"Code reads as CONTRIBUTING.md says: in notebooks, tests, tools, benchmarks and reproductions alike."
import ast
import io
import json
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, tree

WIDTH = 120
NODES = 25  # of nine statements in ten
RUN = 3  # so many exported cells in a row need prose or a check between them

FOLDERS = "nbs", "tests", "tools", "benchmarks"
FILES = [p for p in tree() if p.parts[0] in FOLDERS and p.suffix in (".py", ".ipynb")]
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
NO_NODES = ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop  # part of the node above


@cache
def sources(path):
    "The code of a file: the text of a script, or of each code cell without its magics."
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [text]
    cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return [re.sub(r"^[ \t]*[%!].*$", "", cell, flags=re.M) for cell in cells]


@cache
def parsed(source):
    return ast.parse(source)


def nodes(path):
    "Every syntax node of a file, with its source."
    return [(node, source) for source in sources(path) for node in ast.walk(parsed(source))]


def tokens(source):
    return list(tokenize.generate_tokens(io.StringIO(source + "\n").readline))


# ---------- the rules: each yields what breaks it ----------


def docstrings(source):
    "The docstrings of a source, which are told apart from other texts."
    has = ast.Module, ast.FunctionDef, ast.ClassDef
    bodies = [node.body for node in ast.walk(parsed(source)) if isinstance(node, has) and node.body]
    first = [body[0].value for body in bodies if isinstance(body[0], ast.Expr)]
    return {node.lineno for node in first if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def text_lines(source):
    "Lines within a text of several lines (a page, a script), but for docstrings."
    known = docstrings(source)
    texts = [t for t in tokens(source) if t.type == tokenize.STRING and t.start[0] not in known]
    return {line for t in texts if t.end[0] > t.start[0] for line in range(t.start[0], t.end[0] + 1)}


def long_lines(path):
    for source in sources(path):
        lines = dict(enumerate(source.splitlines(), 1))
        wide = {i for i, line in lines.items() if len(line) > WIDTH and not line.startswith("#|")}
        for i in wide and sorted(wide - text_lines(source)):
            yield f"{len(lines[i])} columns, {WIDTH} are allowed; break it after a comma: {lines[i]}"


def semicolons(path):
    for source in sources(path):
        yield from (t.line for t in tokens(source) if t.type == tokenize.OP and t.string == ";")


def nested_comprehensions(path):
    for node, source in nodes(path):
        if isinstance(node, COMPREHENSIONS):
            inner = [n for n in ast.walk(node) if isinstance(n, COMPREHENSIONS) and n is not node]
            if inner:
                yield ast.get_source_segment(source, node)


def private_imports(path):
    for node, source in nodes(path):
        if isinstance(node, ast.ImportFrom):
            names = [a.name for a in node.names if re.match("_[^_]", a.name)]
            if names:
                yield ast.get_source_segment(source, node)


def return_annotations(path):
    "One form: a space on either side of the arrow."
    for source in sources(path):
        lines = source.splitlines()
        arrows = [t for t in tokens(source) if t.type == tokenize.OP and t.string == "->"]
        for t in arrows:
            (row, start), end = t.start, t.end[1]
            if lines[row - 1][start - 1 : end + 1] != " -> ":
                yield lines[row - 1]


def ends_of_message(node):
    "First and last words of an error's message as they stand in the code; '' where a value comes first or last."
    if isinstance(node, ast.BinOp):
        return ends_of_message(node.left)[0], ends_of_message(node.right)[1]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return ends_of_message(node.func.value)
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    told = [p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "" for p in parts]
    return (told[0], told[-1]) if told else ("", "")


def is_sentence(first, last, arguments):
    "Whether a message begins as a sentence does, or with a name of the code, and ends with a full stop."
    word = re.match(r"\w*", first)[0]
    code = word in arguments or re.match(r"\w+[=_(.]", first)
    begins = not word[:1].islower() or code
    return bool(begins) and (not last or bool(re.search(r"[.?]['\"`)]?\s*$", last)))


def errors(path):
    for source in sources(path):
        functions = [n for n in ast.walk(parsed(source)) if isinstance(n, ast.FunctionDef)]
        arguments = {a.arg for f in functions for a in ast.walk(f.args) if isinstance(a, ast.arg)}
        raised = [n.exc for n in ast.walk(parsed(source)) if isinstance(n, ast.Raise)]
        calls = [call for call in raised if isinstance(call, ast.Call) and call.args]
        for call in calls:
            if not is_sentence(*ends_of_message(call.args[0]), arguments):
                yield ast.get_source_segment(source, call)


def size(statement):
    "Syntax nodes of a simple statement, or of the header of a compound one, without the statements within it."
    count, stack = 0, [statement]
    while stack:
        count += 1
        children = ast.iter_child_nodes(stack.pop())
        stack += [c for c in children if not isinstance(c, (ast.stmt, *NO_NODES))]
    return count


def statements(path):
    "The file if more than one statement in ten is larger than a reader takes in at once."
    sizes = sorted(size(node) for node, _ in nodes(path) if isinstance(node, ast.stmt))
    if sizes and sizes[int(0.9 * len(sizes))] > NODES:
        yield f"a statement in ten has {sizes[int(0.9 * len(sizes))]} syntax nodes or more"


def runs_of_exports(path):
    if path.suffix != ".ipynb":
        return
    run = []
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        exported = cell["cell_type"] == "code" and re.search(r"^#\|\s*exports?\b", source, re.M)
        run = [*run, source] if exported else []
        if len(run) == RUN:
            yield "exported cells without prose or a check between them, the third:\n" + source


RULES = dict(
    width=long_lines,
    semicolons=semicolons,
    nesting=nested_comprehensions,
    private=private_imports,
    returns=return_annotations,
    errors=errors,
    size=statements,
    runs=runs_of_exports,
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_style(path):
    found = {name: list(rule(path)) for name, rule in RULES.items()}
    told = "\n".join(f"{name}: {case}" for name, cases in found.items() for case in cases)
    if told:
        pytest.fail(told, pytrace=False)


# ---------- each rule finds what it is for ----------

BAD = {
    "width": f"x = {'long' * 40!r}",
    "semicolons": "a = 1; b = 2",
    "nesting": "[[i for i in x] for x in y]",
    "private": "from wiseft.data.images import _some",
    "returns": "def f()->int: return 1",
    "errors": "raise ValueError(f'no images in {x}')",
    "size": "f(" + ",\n".join("g(x+1)" for _ in range(20)) + ")",
}


@pytest.mark.parametrize("name", BAD)
def test_rules_can_fail(name, monkeypatch):
    monkeypatch.setattr("test_style.sources", lambda path: [BAD[name]])
    assert [rule for rule, find in RULES.items() if list(find(Path("x.py")))] == [name]


def test_a_run_of_exports_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("test_style.ROOT", tmp_path)
    export = dict(cell_type="code", source=["#| export\n", "x = 1"])
    for extra, n in ([], 1), ([dict(cell_type="markdown", source=["Why."])], 0):
        cells = [export, export, *extra, export]
        (tmp_path / "a.ipynb").write_text(json.dumps(dict(cells=cells)))
        assert len(list(runs_of_exports(Path("a.ipynb")))) == n
