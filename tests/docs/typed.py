"""Numbers typed by hand in a page: a figure with a unit of results, outside code, outside generated marks and blocks."""

import re

# A number with the unit of a result. Sizes and rates of hardware, tolerances and settings match too and are named as exempt.
_UNITS = (
    r"ms|µs|ns|s|seconds?|minutes?|hours?|%|percent|times|×|(?:[KMGT]i?)?B(?:/s)?"
    r"|bytes|tokens/s|tokens per second|points?|billion|million"
)
# Without a unit: rates, ratios and recalls, which have two decimals or more; versions stand after a name.
_RATIO = r"(?<!Python )(?<!PyTorch )(?<!Transformers )(?<!version )\d*\.\d\d+"
RESULT = re.compile(rf"(?<![\w.,-])(?:[-+−]?\d[\d,.]*(?: ?(?:{_UNITS})(?![\w/]))|{_RATIO}(?![\w.]))")
_HIDDEN = (
    re.compile(r"^([ \t]*)(```|~~~|:::\{).*?^\1(```|~~~|:::)[ \t]*$", re.MULTILINE | re.DOTALL),  # code
    re.compile(
        r"<!-- (?P<name>[\w ]+):(?: written by)?.*?-->.*?<!-- (?:end of (?P=name)|(?P=name): end) -->", re.DOTALL
    ),  # blocks
    re.compile(r"<!--n:[\w.-]+-->.*?<!--/n-->", re.DOTALL),  # inline marks
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"(`+)(?:(?!\1).)+?\1"),  # code spans
    re.compile(r"\]\([^)]*\)"),  # targets of links
)


def prose_of(page: str) -> str:
    """A page without code, generated text and addresses."""
    for pattern in _HIDDEN:
        page = pattern.sub(" ", page)
    return page


def sentences_of(page: str) -> list[str]:
    """Sentences, table rows and items of a page's prose, on one line each."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\.\s))", prose_of(page)):
        line = " ".join(paragraph.split())
        parts += re.split(r"(?<=[.!?:;])\s+(?=[A-Z*`(])", line) if not line.startswith("|") else [line]
    return [part for part in parts if part]


def typed_numbers(page: str) -> dict[str, list[str]]:
    """Sentences with hand-typed results, and the results in each."""
    found = {sentence: RESULT.findall(sentence) for sentence in sentences_of(page)}
    return {sentence: numbers for sentence, numbers in found.items() if numbers}
