"""An explorer as one self-contained HTML output: no kernel, no network."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

LIMIT = 100_000
_IMPORT = re.compile(r"^import\b[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)
_COMMENT = re.compile(r"^\s*(//|/?\*).*\n", re.MULTILINE)
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
_MARK = "export default"

Check = tuple[str, list, object]


def _read(name: str) -> str:
    js = files("dsarch.teaching.explorers") / "js"
    return (js / name).read_text(encoding="utf8")


def module(widget: str) -> str:
    """The shared code, the widget and the host as one script module.

    ``ValueError`` if the file is not one widget or would end its script tag.
    """
    source = _read(f"{widget}.js")
    if source.count(_MARK) != 1:
        raise ValueError(f"{widget}.js needs exactly one {_MARK!r}")
    # A function of its own: a widget may reuse any name of the host.
    source = source.replace(_MARK, "return")
    source = f"const widget = (() => {{\n{source}}})();\n"
    host = _read("host.js").replace("__WIDGET__", widget)
    text = "\n".join([_read("lib.js"), source, host])
    for noise in (_IMPORT, _EXPORT, _COMMENT, _INDENT):
        text = noise.sub("", text)
    if "</script" in text.lower():
        raise ValueError(f"{widget}.js must not hold a closing script tag")
    return text


def rounded(value: object) -> object:
    """``value`` with floats at 12 digits, so that outputs are stable."""
    if isinstance(value, float):
        short = float(f"{value:.12g}")
        return int(short) if short.is_integer() else short
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


class Explorer:
    """A figure that the reader can change, with the data it needs inside.

    ``widget`` names a file in ``js/``; ``data`` is what its functions get;
    ``columns`` and ``rows`` are the table shown without JavaScript;
    ``checks`` holds ``(formula, arguments, value)`` triples computed in
    Python, which the explorer recomputes before it is trusted; ``hint`` is
    what to try. More than 100 kB, or a number that JSON cannot hold, raises
    ``ValueError``.
    """

    def __init__(
        self,
        widget: str,
        data: Mapping[str, object],
        *,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        checks: Sequence[Check] = (),
        hint: str = "",
    ) -> None:
        self.widget, self.title = widget, title
        self.columns, self.rows = columns, rows
        extra = {"title": title, "hint": hint, "checks": list(checks)}
        self.data = rounded({**data, **extra})
        self.html = _html(self)
        if len(self.html.encode()) > LIMIT:
            raise ValueError(
                f"{widget} has {len(self.html.encode())} bytes, "
                f"more than {LIMIT}"
            )

    def __repr__(self) -> str:
        return f"Explorer({self.widget!r}: {self.title})"

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.html}


def _html(explorer: Explorer) -> str:
    data = json.dumps(
        explorer.data, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).replace("<", "\\u003c")
    label = html.escape(explorer.title, quote=True)
    return (
        f'<div class="ds-explorer" data-ds-widget="{explorer.widget}"'
        f' data-ds-label="{label}">\n'
        f'<script type="application/json">{data}</script>\n'
        f"{_table(explorer)}\n</div>\n"
        f'<script type="module">\n{module(explorer.widget)}</script>'
    )


def _table(explorer: Explorer) -> str:
    """What a reader without JavaScript sees."""
    head = _row("th scope=col", explorer.columns)
    body = "".join(_row("td", row) for row in explorer.rows)
    return (
        f"<table><caption>{html.escape(explorer.title)}</caption>"
        f"<thead>{head}</thead><tbody>{body}</tbody></table>"
    )


def _row(tag: str, values: Sequence[object]) -> str:
    close = tag.split()[0]
    cells = (f"<{tag}>{html.escape(str(v))}</{close}>" for v in values)
    return f"<tr>{''.join(cells)}</tr>"
