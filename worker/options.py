"""Options that many commands share, with the words that explain them."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]
By = Annotated[str, Parameter(help="Your name; it is kept with what you do.")]
Note = Annotated[str, Parameter(help="Why, for whoever reads this later.")]
Limit = Annotated[int | None, Parameter(help="At most so many rows, the newest first.")]
