"""Panels that run the package with the reader's own sizes, with a kernel.

In JupyterLab a panel shows controls; a stored notebook keeps one sentence
with the result for the sizes that the chapter set, since a page without a
kernel could not answer. The notebook runner and the tests ask for that with
``DSARCH_STATIC=1``.
"""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

LAB = "Run `make lab` to try other sizes."

Field = int | Sequence[str]


class Answer(NamedTuple):
    """What a panel says: a sentence, and a table below it."""

    text: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()

    def html(self) -> str:
        """Sentence and table for the view of a panel."""
        said = f'<p role="status"><b>{html.escape(self.text)}</b></p>'
        if not self.rows:
            return said
        rows = [_row("th", self.head), *(_row("td", r) for r in self.rows)]
        return f"{said}<table>{''.join(rows)}</table>"


def _row(tag: str, values: Sequence[object]) -> str:
    style = ' style="padding: 0 1rem 0 0; text-align: left"'
    cells = (f"<{tag}{style}>{html.escape(str(v))}</{tag}>" for v in values)
    return f"<tr>{''.join(cells)}</tr>"


class Panel:
    """Controls, and what ``answer`` says to their values.

    A field is a whole number or a list of choices, the first one set. A
    ``ValueError`` of ``answer`` is shown to the reader, whatever was typed.
    """

    def __init__(
        self,
        title: str,
        fields: Mapping[str, tuple[str, Field]],
        answer: Callable[..., Answer],
    ) -> None:
        self.title, self.fields, self.answer = title, dict(fields), answer
        self._made: Any = None

    def values(self) -> dict[str, Any]:
        """The values set now: those of the controls, or the first ones."""
        if self._made:
            return {name: c.value for name, c in self.controls.items()}
        return {name: _first(field) for name, (_, field) in self.fields.items()}

    def result(self) -> Answer:
        """The answer to the values set now; a refusal is an answer, too."""
        try:
            return self.answer(**self.values())
        except ValueError as error:
            return Answer(f"Refused: {error}.")

    @property
    def controls(self) -> dict[str, Any]:
        """The widgets by name; made when first asked for."""
        return self._build()[0]

    @property
    def view(self) -> Any:
        """The widget that shows the answer."""
        return self._build()[1]

    def _build(self) -> tuple[dict[str, Any], Any, Any]:
        if not self._made:
            self._made = _widgets(self)
            for control in self._made[0].values():
                control.observe(self._refresh, names="value")
            self._refresh()
        return self._made

    def _refresh(self, change: Any = None) -> None:
        self.view.value = self.result().html()

    def __repr__(self) -> str:
        return f"{self.title} {self.result().text} {LAB}"

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        if os.environ.get("DSARCH_STATIC"):
            return {"text/plain": repr(self)}
        box = self._build()[2]
        return box._repr_mimebundle_(include=include, exclude=exclude)


def _first(field: Field) -> int | str:
    return field if isinstance(field, int) else field[0]


def _widgets(panel: Panel) -> tuple[dict[str, Any], Any, Any]:
    """The controls by name, the view, and the box around all."""
    import ipywidgets as widgets

    made: dict[str, Any] = {}
    for name, (label, field) in panel.fields.items():
        kind, key = widgets.IntText, "value"
        if not isinstance(field, int):
            kind, key = widgets.Dropdown, "options"
        made[name] = kind(**{key: field, "description": label})
        made[name].style = {"description_width": "9rem"}
    view = widgets.HTML()
    heading = widgets.HTML(f"<h4>{html.escape(panel.title)}</h4>")
    columns = widgets.Layout(grid_template_columns="repeat(auto-fill, 21rem)")
    grid = widgets.GridBox(list(made.values()), layout=columns)
    return made, view, widgets.VBox([heading, grid, view])
