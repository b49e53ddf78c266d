"""Parts of pages that scripts write, between the markers `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""


def refreshed(text: str, name: str, part: str) -> str:
    """Return a page with the part of this name replaced. Raises ValueError if its markers are missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks {begin} or {end}")
    return f"{before}{begin}\n{part}\n{end}{after}"
