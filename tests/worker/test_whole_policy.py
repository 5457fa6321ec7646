"""The truth table of the whole policy, driven from people's acts at Stripe to what comes of them, in both API shapes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.conftest import database_named
from tests.policy_truth import ROWS as CLAUSES
from tests.policy_truth_chargebacks import ROWS as CHARGEBACKS
from tests.worker.rehearsal import Row, Scene, stage
from worker.db import connect_pool
from worker.embedded import EmbeddedServers
from worker.settings import Settings

ROWS = [*CLAUSES, *CHARGEBACKS]
LAST_DAY = 66
