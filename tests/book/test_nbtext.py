"""A chapter survives the way to text and back."""

import nbformat
import pytest

from book.nbtext import to_notebook, to_text

TEXT = """\
# Title

Prose with $x$ and a fence:

```python
shown = 1
```

+++

A second cell.

+++ {"tags": ["note"]}

A third, with metadata.

```{code-cell}
:tags: [hide-input, raises-exception]
x = [1]
```

```{code-cell}
---
tags: [hide-input]
mystnb:
  image:
    alt: 'A line: from 0 to 1'
---
print(x)
```

````{code-cell}
print("```")
````

```{code-cell}
x
```

```{code-cell}
x
```
"""


def simple(notebook: nbformat.NotebookNode) -> list:
    return [(c.cell_type, c.metadata, c.source) for c in notebook.cells]


def test_round_trip_keeps_cells_and_metadata() -> None:
    first = to_notebook(TEXT)
    kinds = [cell.cell_type for cell in first.cells]
    assert kinds == ["markdown"] * 3 + ["code"] * 5
    assert first.cells[2].metadata == {"tags": ["note"]}
    assert first.cells[3].metadata.tags == ["hide-input", "raises-exception"]
    assert first.cells[4].metadata.mystnb.image.alt == "A line: from 0 to 1"
    assert first.cells[5].source == 'print("```")'
    second = to_notebook(to_text(first))
    assert simple(first) == simple(second)
    assert to_text(first) == to_text(second)


def test_ids_are_unique_and_hang_on_the_text_alone() -> None:
    ids = [cell["id"] for cell in to_notebook(TEXT).cells]
    assert len(set(ids)) == len(ids)
    longer = [c["id"] for c in to_notebook("New.\n\n+++\n\n" + TEXT).cells]
    assert longer[1:] == ids


def test_an_open_code_cell_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 3: the code cell"):
        to_notebook("# T\n\n```{code-cell}\nx = 1\n")
