"""The numbers in a text, as people and models write them."""

import re
from decimal import Decimal

# A minus is a sign where nothing that it could subtract from, or join to, stands right before it (not in "5-3",
# "GPT-4", "10%-20%"). A currency may stand on either side of it. A comma belongs to a number between thousands.
NUMBER = re.compile(
    r"""(?: (?<![\w%)\]}]) (?P<minus>[-\u2212]) )?  (?: \\?[$€£¥₹] (?P<inner>[-\u2212])? )?
        (?P<digits> (?: \d{1,3}(?:,\d{3})+(?!\d) | \d+ ) (?:\.\d+)? | (?<![\w.])\.\d+ )
        (?P<exponent> [eE][-+]?\d{1,3}(?!\w) )?""",
    re.VERBOSE,
)


def last_number(text: str) -> Decimal | None:
    """The value of the last number in a text, None where there is none.

    Read are signs, decimals, thousands separated by commas and exponents ("-1,234.50", ".5", "2e3"). Currency, percent
    and other units stand beside a number and change nothing: "50%" is 50. A comma is no decimal point: "3,5" ends in 5.
    """
    found = numbers(text)
    return found[-1] if found else None


def numbers(text: str) -> list[Decimal]:
    """The values of the numbers in a text, in order, read as `last_number` says."""
    return [value_of(one) for one in NUMBER.finditer(text)]


def value_of(number: re.Match[str]) -> Decimal:
    """The value of a match of NUMBER."""
    value = Decimal(number["digits"].replace(",", "") + (number["exponent"] or ""))
    return -value if number["minus"] or number["inner"] else value
