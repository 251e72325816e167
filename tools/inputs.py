"""What a page's outputs depend on: a page whose inputs have not changed need not run again.

While a page runs, `watch` collects the project's files that it reads: its data, and the modules that it imports,
directly or not. `make refresh` keeps their names in tests/pages.json, with a hash of their contents, of the page, and
of its outputs. With other versions of Python and of the libraries, `make test-all` runs every page.
"""
import ast
import json
import os
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/pages.json"


def watch():
    "A function that lists the files of the project that were read since, without what is unpacked from an archive."
    opened, before = set(), set(sys.modules)

    def hook(event, args):
        if event == "open" and isinstance(args[0], str):
            opened.add(os.path.abspath(args[0]))

    sys.addaudithook(hook)

    def files():
        modules = {str(getattr(m, "__file__", None)) for name, m in list(sys.modules.items()) if name not in before}
        inside = [Path(f).relative_to(ROOT) for f in opened | modules if Path(f).is_relative_to(ROOT)]
        return sorted(str(f) for f in inside if f.suffix not in (".ipynb", ".pyc", ".npz") and (ROOT / f).is_file()
                      and f.parts[0] not in ("tools", "wiseft.egg-info")
                      and not any(part.startswith(".") for part in f.parts))

    return files


def syntax(node):
    "A syntax tree as text; without empty fields, some of which only newer versions of Python have."
    if isinstance(node, list):
        return [syntax(n) for n in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [syntax(value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, *fields]


@cache
def content(path):
    "A file without what can't matter: comments and layout of code."
    if not path.is_file():
        return b"missing"
    return str(syntax(ast.parse(path.read_bytes()))).encode() if path.suffix == ".py" else path.read_bytes()


def package_data():
    "Files of the package that are not code; some are read without Python's `open`."
    code = ".py", ".pyc", ".typed"
    return [str(p.relative_to(ROOT)) for p in sorted((ROOT / "wiseft").rglob("*.*")) if p.suffix not in code]


def digest(page, files):
    "The hash of a page, its outputs, and the files that it reads."
    cells = [c for c in json.loads((ROOT / page).read_text())["cells"] if c["cell_type"] == "code"]
    parts = [json.dumps([[c["source"], c["outputs"]] for c in cells]).encode()]
    parts += [content(ROOT / f) for f in [*files, *package_data()]]
    return sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()


def stored():
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def store(page, files):
    "Keep the hash of a page that has just run."
    import fcntl  # of POSIX: only `make refresh` needs it

    with open(ROOT / "tools/inputs.py") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several pages may run at once
        table = stored() | {str(page): dict(hash=digest(page, files), files="|".join(files))}
        TABLE.write_text(json.dumps({p: table[p] for p in sorted(table) if (ROOT / p).exists()}, indent=1) + "\n")


def unchanged(page):
    "Whether a page and all that its outputs depend on are as they were when it ran for `make refresh`."
    kept = stored().get(str(page))
    return bool(kept) and kept["hash"] == digest(page, kept["files"].split("|") if kept["files"] else [])
