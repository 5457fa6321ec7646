"""Options that many commands share, with the words that explain them."""

from __future__ import annotations

import getpass
from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]
By = Annotated[str, Parameter(help="Your name; it is kept with what you do.")]
ByLogin = Annotated[
    str | None, Parameter(name="--by", help="Your name, kept with what you do; your login name where it is left out.")
]
Note = Annotated[str, Parameter(help="Why, for whoever reads this later.")]
Limit = Annotated[int | None, Parameter(help="At most so many rows, the newest first.")]


def login(by: str | None) -> str:
    """The name that was given, or the login name."""
    return by or getpass.getuser()
