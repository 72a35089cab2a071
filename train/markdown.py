"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def grid(
    headings: Sequence[str],
    rows: Iterable[Iterable[str]],
    words: Sequence[str] | None = None,
) -> str:
    """Returns a table in Markdown, words to the left and numbers to the right.

    Args:
      headings: one a column.
      rows: the cells.
      words: the headings of columns that hold words; by default the first.

    Example:
      >>> print(grid(["a", "b"], [["x", "1"]]))
      | a | b |
      |---|--:|
      | x | 1 |
    """
    left = headings[:1] if words is None else words
    text = ["| " + " | ".join(line) + " |" for line in (headings, *rows)]
    rule = ["---" if heading in left else "--:" for heading in headings]
    text.insert(1, f"|{'|'.join(rule)}|")
    return "\n".join(text)
