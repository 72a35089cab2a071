"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def grid(
    headings: Sequence[str],
    rows: Iterable[Iterable[str]],
    words: Sequence[str] | None = None,
) -> str:
    """Returns a Markdown table with left-aligned words and right-aligned numbers.

    Args:
      headings: the heading of each column.
      rows: the cells of each row.
      words: the headings of the columns of words; by default only the first.

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
