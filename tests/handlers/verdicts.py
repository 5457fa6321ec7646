"""What a story should end in, written as one line for each payment, and the comparison with what was judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from handlers.decisions import Acted, ActionKind, Decision, Judgement, Prepared, Verdict
from handlers.terms import Policy
from tests.handlers.history import POLICY, History


@dataclass(frozen=True)
class Expected:
    """One decision: about what, which verdict, which original, and what is done or prepared."""

    subject: str
    rule: str
    verdict: Verdict
    original: str | None
    amount: str | None
    prepared: tuple[str, ...]
    why: str = field(default="", compare=False)


def refund(subject: str, of: str, rule: str, amount: str = "29.00 USD", *also: str) -> Expected:
    """The amount goes back by itself, with the other actions named."""
    return Expected(subject, rule, Verdict.REFUND, of, amount, (f"refund {subject} {amount}", *also))


def review(subject: str, of: str | None, rule: str, *prepared: str, why: str) -> Expected:
    """A person decides; `prepared` waits for the word. The reason holds `why`."""
    amount = next((p.split(" ", 2)[2] for p in prepared if p.startswith(f"refund {subject} ")), None)
    return Expected(subject, rule, Verdict.REVIEW, of, amount, prepared, why)


def none(subject: str, of: str, rule: str, why: str) -> Expected:
    """Looked at, and no duplicate. The reason holds `why`."""
    return Expected(subject, rule, Verdict.NONE, of, None, (), why)


@dataclass(frozen=True)
class Case:
    """A story with its verdicts."""

    name: str
    tell: Callable[[History], None]
    expected: tuple[Expected, ...]
    policy: Policy = POLICY
    acted: tuple[Acted, ...] = ()
    test_clocks: bool = False

    def judged(self) -> Judgement:
        history = History()
        self.tell(history)
        return history.judge(self.policy, acted=self.acted, test_clocks=self.test_clocks)


class Cases(list[Case]):
    """The stories of one test module, in the order in which they are told."""

    def __call__(
        self,
        name: str,
        *expected: Expected,
        policy: Policy = POLICY,
        acted: tuple[Acted, ...] = (),
        test_clocks: bool = False,
    ) -> Callable[[Callable[[History], None]], Callable[[History], None]]:
        def told(tell: Callable[[History], None]) -> Callable[[History], None]:
            self.append(Case(name, tell, expected, policy, acted, test_clocks))
            return tell

        return told


def begun(*subjects: str, kind: ActionKind = ActionKind.REFUND) -> tuple[Acted, ...]:
    """Actions that were begun."""
    return tuple(Acted(kind=kind, subject=subject, state="sent") for subject in subjects)


_VERBS = {
    ActionKind.REFUND: "refund",
    ActionKind.CANCEL_SUBSCRIPTION: "cancel",
    ActionKind.REVERSE_BALANCE_CREDIT: "reverse",
}


def _step(step: Prepared) -> str:
    return " ".join(filter(None, [_VERBS[step.kind], step.subject, str(step.amount) if step.amount else ""]))


def summary(decision: Decision) -> Expected:
    """A decision as a line to compare."""
    return Expected(
        decision.subject,
        decision.rule,
        decision.verdict,
        decision.original,
        str(decision.amount) if decision.amount else None,
        tuple(_step(step) for step in decision.prepared),
        decision.reason,
    )


def check(case: Case) -> None:
    """Compare every decision of the story; unexpected `none` decisions are only notes and are passed over."""
    judged = {subject: summary(decision) for subject, decision in case.judged().decisions.items()}
    wanted = {expected.subject: expected for expected in case.expected}
    notes = {s for s, found in judged.items() if found.verdict is Verdict.NONE and s not in wanted}
    found = {subject: decision for subject, decision in judged.items() if subject not in notes}
    assert {s: replace(d, why="") for s, d in found.items()} == {s: replace(e, why="") for s, e in wanted.items()}, [
        d.why for d in found.values()
    ]
    for subject, expected in wanted.items():
        assert expected.why in found[subject].why, found[subject].why
