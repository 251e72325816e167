"""What in the package reads or writes files, by its code; and what of it some code runs."""
import ast
import sys
from contextlib import contextmanager
from pathlib import Path

import wiseft

PACKAGE = Path(wiseft.__file__).parent
READS = {"open", "read_text", "read_bytes", "read_csv", "safe_open", "ZipFile", "memmap", "np.load", "Image.open",
         "tarfile.open", "gzip.open", "sqlite3.connect"}
WRITES = {"atomic_path", "first_writes"}  # all else that writes is called by those who use these


def named(call):
    "What a call names: a function, a method, or a module's function."
    f = call.func
    if isinstance(f, ast.Name):
        writes = f.id == "open" and any(isinstance(a, ast.Constant) and a.value == "wb" for a in call.args)
        return set() if writes else {f.id}
    owner = [f"{f.value.id}.{f.attr}"] if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) else []
    return {*owner, f.attr} - {"open"} if isinstance(f, ast.Attribute) else set()


def functions(names):
    "Functions, as `subpackage/module.name`, that call one of some names."
    callers = set()
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        for f in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(f, ast.FunctionDef):
                calls = [named(n) for n in ast.walk(f) if isinstance(n, ast.Call)]
                if names & set().union(*calls):
                    callers.add(f"{module}.{f.name}")
    return callers


@contextmanager
def watched(names):
    "Add to a set the package's functions that run meanwhile, as `subpackage/module.name`."
    def profile(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            names.add(f"{Path(code.co_filename).relative_to(PACKAGE).with_suffix('').as_posix()}.{code.co_name}")

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
