"""Runs a notebook without Jupyter: its code cells in one namespace, and what each shows.

`python -m tests.notebooks docs/results.ipynb` runs it where it is called and writes the outputs into the file.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def run(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The outputs of every code cell, as the file format has them: what was printed, then the last expression."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    return [_run(source(cell), scope) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _run(code: str, scope: dict[str, Any]) -> list[dict[str, Any]]:
    body = ast.parse(code).body
    last = body[-1] if body else None
    body = body[:-1] if isinstance(last, ast.Expr) else body
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), scope)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), scope)
    out: list[dict[str, Any]] = []
    if printed.getvalue():
        out.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        out.append({"output_type": "execute_result", "metadata": {}, "data": _data(value)})
    return out


def _data(value: Any) -> dict[str, Any]:
    """What Jupyter would ask a value for, in its order."""
    data: dict[str, Any] = {}
    if hasattr(value, "_repr_html_") and (html := value._repr_html_()) is not None:
        data["text/html"] = html
    if hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode()
    return data or {"text/plain": repr(value)}


def main(path: Path) -> None:
    notebook = json.loads(path.read_text())
    outputs = run(notebook)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for i, (cell, found) in enumerate(zip(cells, outputs, strict=True), 1):
        cell["execution_count"] = i
        cell["outputs"] = [
            {**one, "execution_count": i} if one["output_type"] == "execute_result" else one for one in found
        ]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
