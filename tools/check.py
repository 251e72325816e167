#!/usr/bin/env python
"""Check what a change touches, and nothing else.

  check.py            what differs from the last commit
  check.py COMMIT     what differs from another one
  check.py --all      everything, as `make test-all` does

The package is exported. Then the changed notebooks and scripts, those that import a changed name or call a changed
method, and those that name a changed file of data, go through ruff and the tests of layout and of notebooks, which run
them and compare what they print with what they have stored, unless nothing that they depend on has changed since it was
stored, as in `make test`. If these are more than a dozen, modules alone are run. The other tests that were changed are
run as they are.
"""
import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from inputs import unchanged

ROOT = Path(__file__).resolve().parent.parent
MANY = 12
FILES = [f"tests/promises/test_{name}.py" for name in ("project", "notebooks", "pages", "architecture")]


def lines_of(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def before(path, since):
    "Text of a file at a commit; '' where it wasn't there."
    return subprocess.run(["git", "show", f"{since}:{path}"], cwd=ROOT, capture_output=True, text=True).stdout


def now(path):
    "Text of a file as it is; '' where there is none."
    return (ROOT / path).read_text() if (ROOT / path).exists() else ""


def definitions(text):
    """Each top-level name of a module, with what defines or changes it. Patched methods count to their class, too, and
    bare calls to what they name."""
    found = {}
    for node in ast.parse(text).body:
        changes = node if isinstance(node, ast.Expr) else ast.Module(getattr(node, "targets", []), [])
        names = [*names_in(changes), getattr(node, "name", None)]
        first = node.args.args[:1] if isinstance(node, ast.FunctionDef) else []
        if first and isinstance(first[0].annotation, ast.Name) and "patch" in map(ast.unparse, node.decorator_list):
            names += [first[0].annotation.id, f".{node.name}"]
        for name in filter(None, names):
            found.setdefault(name, []).append(node)
    return found


def code(nodes):
    "Definitions without their docstrings, as texts."
    for node in nodes:
        for n in ast.walk(node):
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(n) is not None:
                n.body = n.body[1:]
    return [*map(ast.dump, nodes)]


def changed_names(path, since):
    "Names of a module whose code differs, or that use one whose code does."
    new, old = definitions(now(path)), definitions(before(path, since))
    changed = {n for n in new if code(new[n]) != code(old.get(n, []))} | (old.keys() - new)
    read = {n: set().union(*map(names_in, nodes)) for n, nodes in new.items() if not n.startswith(".")}
    while users := {n for n, names in read.items() if changed & names} - changed:
        changed |= users
    return changed


def names_in(tree):
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def code_of(path):
    cells = json.loads((ROOT / path).read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return re.sub(r"^[ \t]*[%!].*$", "", "\n".join(code), flags=re.M)


def uses(path, changed, data):
    "Whether a notebook imports a changed name, calls a changed method, or names data. `changed`: module -> names."
    code = code_of(path)
    if any(name in code for name in data):
        return True
    tree, names = ast.parse(code), set().union(*changed.values())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    taken = {(n.module, a.name) for n in imports for a in n.names}
    if any(name in changed.get(module, ()) for module, name in taken):
        return True
    if ("wiseft.all", "*") in taken and names & names_in(tree) or any(("wiseft.all", name) in taken for name in names):
        return True
    return bool(names & {f".{n.attr}" for n in ast.walk(tree) if isinstance(n, ast.Attribute)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("since", nargs="?", default="HEAD", help="a commit; default HEAD")
    parser.add_argument("--all", action="store_true", help="run all tests: some 25 minutes on two idle cores")
    args = parser.parse_args()
    pytest = [sys.executable, "-m", "pytest", "-q", "--no-header"]
    by_two = ["-n", "2", "--dist", "load", "--maxschedchunk", "1"]
    if args.all:
        print("all tests: some 25 minutes on two idle cores", flush=True)
        sys.exit(subprocess.call([*pytest, *by_two, "tests"], cwd=ROOT))
    touched = lines_of("git", "diff", "--name-only", args.since)
    touched += lines_of("git", "ls-files", "--others", "--exclude-standard")
    modules = [p for p in touched if re.fullmatch(r"wiseft/.*\.py", p) and not p.endswith("_modidx.py")]
    changed = {p[:-3].replace("/", "."): changed_names(p, args.since) for p in modules}
    books = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_" not in str(p)]
    data = {Path(p).name for p in touched if not p.endswith((".ipynb", ".py", ".md"))}
    users = [b for b in books if b not in touched and uses(b, changed, data) and not unchanged(b)]
    there = [p for p in touched if (ROOT / p).exists() and not p.startswith("wiseft/")]
    own = [p for p in there if p.endswith((".ipynb", ".py"))]
    tests = [p for p in own if re.fullmatch(r"tests/(\w+/)?test_\w+\.py", p) and p not in FILES]
    if not own + users:
        sys.exit(f"Nothing that a notebook or script uses differs from {args.since}.")
    for name, names in changed.items():
        print(f"{name}: {', '.join(sorted(names)) or 'no name differs'}")
    print(f"changed: {', '.join(own) or 'none'}\nuse what changed: {', '.join(users) or 'none'}", flush=True)
    if len(users) > MANY:
        left, users = len(users), [b for b in users if b.startswith("nbs/api/")]
        print(f"run of these: the {len(users)} modules, not {left - len(users)} pages (make check ALL=1)", flush=True)
    failed = subprocess.call([sys.executable, "-m", "ruff", "check", "--no-cache", *own], cwd=ROOT)
    pytest += by_two if len(own) + len(users) > 2 else []  # a second process imports all there is once more
    narrowed = ["-m", "not slow", "-k", " or ".join([*own, *users, "sidebar"])]  # what has not changed is slow
    failed |= subprocess.call([*pytest, *FILES, *narrowed], cwd=ROOT)
    if tests:
        failed |= subprocess.call([*pytest, *tests], cwd=ROOT)
    sys.exit(failed)


if __name__ == "__main__":
    main()
