"""Small faults of the kind that a tired developer makes: those that rules make of the syntax tree, and those that
somebody aimed by hand, in tests/aimed_faults.toml. See mutants.py, which plants them.
"""

import ast
import copy
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("main.py", "rec.py", "models/*.py", "preprocessing/*.py", "preprocessing/*/*.py", "training/*.py",
           "recommending/*.py", "models/*/*.py")
AIMED = "tests/aimed_faults.toml"
PICTURES = {"plot_training", "draw_map", "_label"}  # functions whose numbers are looks
SAYS = {"help", "metavar", "desc", "unit", "unit_scale", "mininterval", "leave", "stacklevel", "description", "usage"}
SAME = {"encoding", "flush", "strict", "cancel_futures", "sem", "num_warps", "layout", "figsize", "ms", "lw", "color",
        "use_threads", "with_split"}  # keywords without which the behaviour is the same, or a picture looks otherwise
PARTNERS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub,
            ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
            ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
            ast.BitXor: ast.BitAnd, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum", "amax": "amin",
         "amin": "amax", "argmax": "argmin", "argmin": "argmax", "ceil": "floor", "zeros_like": "ones_like",
         "ones_like": "zeros_like", "floor": "ceil"}
DROPPED = {"abs", "clamp", "square", "sqrt", "rsqrt", "log", "exp", "round", "strip", "casefold", "lower", "flip",
           "sort", "masked_fill", "nan_to_num", "log1p", "cumsum"}  # methods that return what they are called on


@dataclass(frozen=True)
class Fault:
    """A piece of a file, and what takes its place."""

    file: str
    line: int
    function: str
    start: int  # offset in the file's text
    old: str
    new: str
    what: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it while lines move."""
        return self.file, self.function, self.old, self.new


def product_files() -> list[str]:
    """Return the product's files, as paths below the root."""
    return sorted({str(path.relative_to(ROOT)) for pattern in PRODUCT for path in ROOT.glob(pattern)
                   if path.stat().st_size})


def aimed(files: list[str]) -> list[Fault]:
    """Return the faults that were aimed by hand; one whose text is gone is an error, for then it says nothing."""
    faults = []
    for entry in tomllib.loads((ROOT / AIMED).read_text(encoding="utf-8"))["fault"]:
        if entry["file"] not in files:
            continue
        text = (ROOT / entry["file"]).read_text(encoding="utf-8")
        if text.count(entry["old"]) != 1:
            raise SystemExit(f"{AIMED}: {entry['what']!r}: its text stands {text.count(entry['old'])} times in "
                             f"{entry['file']}; write it anew")
        start = text.index(entry["old"])
        line = text.count("\n", 0, start) + 1
        faults.append(Fault(entry["file"], line, "aimed", start, entry["old"], entry["new"], entry["what"]))
    return faults


def places(file: str) -> list[Fault]:
    """Return all faults that the rules below make of a file."""
    text = (ROOT / file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    line_starts = [0]
    for line in text.splitlines(keepends=True):
        line_starts.append(line_starts[-1] + len(line))
    lines = text.splitlines()
    faults = []
    for node, function in walk(tree, ""):
        for new in changes(node, function):
            offsets = []
            for row, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)):
                offsets.append(line_starts[row - 1] + len(lines[row - 1].encode()[:column].decode()))
            old = text[offsets[0]:offsets[1]]
            if old != new:
                faults.append(Fault(file, node.lineno, function, offsets[0], old, new))
    return faults


def walk(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield the nodes that may be changed, with the function that each is in."""
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "annotation", "returns", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.keyword) and child.arg in SAYS | SAME:
                continue
            if isinstance(child, ast.Constant) and isinstance(node, ast.UnaryOp):
                continue  # -2 asks NumPy for the size that is left as -1 does
            if isinstance(child, ast.If) and "__name__" in ast.unparse(child.test):
                continue
            yield child, function
            if isinstance(child, ast.Raise) or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                continue
            inner = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{function}.{child.name}".lstrip(".")
            yield from walk(child, inner)


def changes(node: ast.AST, function: str) -> Iterator[str]:
    """Yield what may take the place of a node."""
    def changed(**fields: object) -> str:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return f"({ast.unparse(other)})"

    texts = (ast.Constant, ast.JoinedStr, ast.List, ast.Tuple)
    match node:
        case ast.Compare(ops=[operation]):
            yield changed(ops=[PARTNERS[type(operation)]()])
        case ast.BoolOp():
            yield changed(op=PARTNERS[type(node.op)]())
            yield changed(values=node.values[:-1]) if len(node.values) > 2 else f"({ast.unparse(node.values[0])})"
        case ast.BinOp() if type(node.op) in PARTNERS and not any(
                isinstance(side, texts) and not isinstance(getattr(side, "value", None), int | float)
                for side in (node.left, node.right)):
            yield changed(op=PARTNERS[type(node.op)]())
            yield f"({ast.unparse(node.left)})"
            if isinstance(node.op, ast.Add):
                yield f"({ast.unparse(node.right)})"
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield f"({ast.unparse(node.operand)})"
        case ast.IfExp():
            yield f"({ast.unparse(node.body)})"
            yield f"({ast.unparse(node.orelse)})"
        case ast.Constant(value=bool()):
            yield str(not node.value)
        case ast.Constant(value=int()) if function.split(".")[-1] not in PICTURES:
            yield str(node.value + 1)
            if node.value > 1:
                yield str(node.value - 1)
        case ast.Constant(value=float()) if function.split(".")[-1] not in PICTURES:
            yield repr(node.value * 2 or 1.0)
        case ast.Call():
            yield from changed_calls(node, changed)
        case ast.Slice(upper=ast.AST()) if node.lower is not None or not isinstance(node.upper, ast.Constant):
            yield ast.unparse(ast.Slice(node.lower, None, node.step))
        case ast.If():
            return  # its test is a node of its own
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
            return
        case ast.Expr(value=ast.Call()) if not ast.unparse(node).startswith(("bar.", "axes.", "parser.add", "add(")):
            yield "pass"
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield "pass"


def changed_calls(node: ast.Call, changed: object) -> Iterator[str]:
    """Yield what may take the place of a call."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in NAMES:
        func = copy.copy(node.func)
        setattr(func, "attr" if isinstance(func, ast.Attribute) else "id", NAMES[name])
        yield changed(func=func)
    if name in DROPPED and isinstance(node.func, ast.Attribute):
        yield f"({ast.unparse(node.func.value)})"
    if name not in ("print", "tqdm", "add_argument", "add", "ArgumentParser"):
        for keyword in node.keywords:
            if keyword.arg not in SAYS | SAME | {None}:
                yield changed(keywords=[other for other in node.keywords if other is not keyword])
