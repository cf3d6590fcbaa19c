"""Numbers as text; templates use these functions as filters."""

MISSING = "\u2013"
_HASH_DIGITS = 12  # enough to tell files apart; the whole hash is in the tooltip and the settings


def minus(text: str) -> str:
    """A true minus sign, which is as wide as a plus."""
    return text.replace("-", "\u2212")


def decimal(value: float | None, form: str = ".3f") -> str:
    """A number in a format, or a dash for None."""
    return MISSING if value is None else minus(format(value, form))


def count(value: float | None) -> str:
    """A whole number with separators of thousands, or a dash for None."""
    return decimal(value, ",.0f")


def between(interval: tuple[float, float], form: str = ".3f") -> str:
    """The two ends of an interval."""
    return f"{decimal(interval[0], form)} to {decimal(interval[1], form)}"


def score_format(value: float | None) -> str:
    """Three decimals, and fewer for large numbers such as perplexities."""
    return ".3f" if value is None or abs(value) < 10 else ".2f" if abs(value) < 100 else ",.1f"


def p_value(p: float | None) -> str:
    """A p-value; very small ones by their bound."""
    return "< 0.001" if p is not None and p < 0.001 else decimal(p)


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if seconds >= 120 else f"{seconds:.1f} s"


def counted(wording: str, number: str) -> str:
    """The wording with a number in it: 1 "round", 2 "rounds"."""
    text = wording.format(number)
    return text.removesuffix("s") if number == "1" else text


def short_hash(text: str) -> str:
    """The first digits of a hash."""
    return text if len(text) <= _HASH_DIGITS else f"{text[:_HASH_DIGITS]}\u2026"


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
