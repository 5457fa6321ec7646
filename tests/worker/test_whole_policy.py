"""The truth table of the whole policy, driven from people's acts at Stripe to what comes of them, in both API shapes."""

from __future__ import annotations

from tests.policy_truth import ROWS as CLAUSES
from tests.policy_truth_chargebacks import ROWS as CHARGEBACKS

ROWS = [*CLAUSES, *CHARGEBACKS]
LAST_DAY = 66
