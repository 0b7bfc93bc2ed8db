"""Words for people."""


def counted(count: int, of: str) -> str:
    """As in "1 station" and "2 stations"."""
    return f"{count:,} {of}{'' if count == 1 else 's'}"
