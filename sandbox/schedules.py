"""Subscription schedules: phases that follow one another by the clock, and what becomes of the subscription after the last."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox import forms
from sandbox.changes import Changes
from sandbox.invoices import DAY
from sandbox.store import Obj, invalid

PhaseOf = tuple[list[tuple[Obj, int]], int]
"""Prices with quantities, and the phase's end (unix seconds)."""


class Schedules(Changes):
    """Behaviour of schedules (stripe.com/docs/billing/subscriptions/subscription-schedules)."""

    def schedule(
        self,
        sub: Obj,
        phases: Sequence[PhaseOf] = (),
        *,
        end_behavior: str = "release",
        proration: str = "create_prorations",
    ) -> Obj:
        """Put a running subscription on a schedule: its current period as it is, then `phases`.

        `end_behavior`: what the end of the last phase does to the subscription, `release` (it runs on) or `cancel`.
        """
        self._alive(sub)
        if sub["schedule"]:
            raise invalid("The subscription is already attached to a schedule.", param="from_subscription")
        schedule = forms.subscription_schedule(
            self.new_id("sub_sched_1"), self.now(), self.livemode, sub=sub, end_behavior=end_behavior
        )
        running = sub["items"]["data"][0]
        items = [(item["price"], item["quantity"]) for item in sub["items"]["data"]]
        span = (running["current_period_start"], running["current_period_end"])
        schedule["phases"] = [forms.schedule_phase(items, sub["currency"], *span, proration)]
        self._add_phases(schedule, phases, proration)
        schedule["current_phase"] = {"end_date": span[1], "start_date": span[0]}
        self.put(schedule)
        self.emit("subscription_schedule.created", schedule)
        self.change(sub, "customer.subscription.updated", schedule=schedule["id"], **self._planned_end(schedule))
        self._follow(schedule)
        return schedule

    def set_phases(
        self,
        schedule: Obj,
        phases: Sequence[PhaseOf] | None = None,
        *,
        end_behavior: str | None = None,
        proration: str = "create_prorations",
    ) -> None:
        """Replace everything after the current phase (None: leave it), and perhaps what comes after the last."""
        self._running(schedule)
        if phases is not None:
            begun = schedule["current_phase"]["end_date"]
            schedule["phases"] = [phase for phase in schedule["phases"] if phase["end_date"] <= begun]
            self._add_phases(schedule, phases, proration)
        schedule["end_behavior"] = end_behavior or schedule["end_behavior"]
        self.emit("subscription_schedule.updated", schedule)
        self.change(
            self.by_id[schedule["subscription"]], "customer.subscription.updated", **self._planned_end(schedule)
        )
        self._follow(schedule)

    def release_schedule(self, schedule: Obj) -> None:
        """The schedule lets go of its subscription, which runs on as it is; an end that it had set is taken back."""
        self._running(schedule)
        sub = self.by_id[schedule["subscription"]]
        schedule |= {"status": "released", "released_at": self.now(), "current_phase": None}
        self._let_go(schedule, sub)
        self.emit("subscription_schedule.updated", schedule, {"status": "active"})
        self.emit("subscription_schedule.released", schedule)
        self.change(sub, "customer.subscription.updated", schedule=None, cancel_at=None, canceled_at=None)

    def cancel_schedule(self, schedule: Obj, *, prorate: bool = True, invoice_now: bool = True) -> None:
        """End the schedule and its subscription at once; other than for a subscription both flags default to true."""
        self._running(schedule)
        self.cancel(self.by_id[schedule["subscription"]], prorate=prorate, invoice_now=invoice_now)

    def _running(self, schedule: Obj) -> None:
        if schedule["status"] not in ("not_started", "active"):
            raise invalid(
                f"You cannot change a subscription schedule that is currently in the `{schedule['status']}` status."
            )

    def _add_phases(self, schedule: Obj, phases: Sequence[PhaseOf], proration: str) -> None:
        for items, end in phases:
            last = schedule["phases"][-1]
            if end <= last["end_date"]:
                raise invalid("A phase must end after it begins.", param="phases", stored=False)
            schedule["phases"].append(forms.schedule_phase(items, last["currency"], last["end_date"], end, proration))

    def _planned_end(self, schedule: Obj) -> Obj:
        """A schedule that will cancel its subscription says so on it."""
        ends = schedule["end_behavior"] == "cancel"
        return {
            "cancel_at": schedule["phases"][-1]["end_date"] if ends else None,
            "canceled_at": self.now() if ends else None,
        }

    def _let_go(self, schedule: Obj, sub: Obj) -> None:
        schedule |= {"subscription": None, "released_subscription": sub["id"]}

    # -- by the clock --------------------------------------------------------------------------------------------------

    def _follow(self, schedule: Obj) -> None:
        for phase in schedule["phases"]:
            if phase["end_date"] > self.now():
                self.at(phase["end_date"], lambda: self._move_on(schedule))
        end = schedule["phases"][-1]["end_date"]
        self.at(max(self.now(), end - 7 * DAY), lambda: self._expires_soon(schedule, end))

    def _expires_soon(self, schedule: Obj, end: int) -> None:
        if schedule["status"] == "active" and schedule["phases"][-1]["end_date"] == end:
            self.emit("subscription_schedule.expiring", schedule)

    def phase_due(self, sub: Obj) -> bool:
        if sub["schedule"]:
            self._move_on(self.by_id[sub["schedule"]])
        return bool(sub["status"] == "canceled")

    def _move_on(self, schedule: Obj) -> None:
        now = self.now()
        if schedule["status"] != "active" or now < schedule["current_phase"]["end_date"]:
            return
        phase = next((phase for phase in schedule["phases"] if phase["end_date"] > now), None)
        if phase is None:
            self._complete_schedule(schedule)
            return
        before = {"current_phase": schedule["current_phase"]}
        schedule["current_phase"] = {"end_date": phase["end_date"], "start_date": phase["start_date"]}
        self.emit("subscription_schedule.updated", schedule, before)
        self._change_over(self.by_id[schedule["subscription"]], phase)

    def _complete_schedule(self, schedule: Obj) -> None:
        sub = self.by_id[schedule["subscription"]]
        schedule |= {"status": "completed", "completed_at": self.now(), "current_phase": None}
        if schedule["end_behavior"] != "cancel":
            self._let_go(schedule, sub)
        self.emit("subscription_schedule.completed", schedule)
        if schedule["end_behavior"] == "cancel":
            self._end(sub, "cancellation_requested")
        else:
            self.change(sub, "customer.subscription.updated", schedule=None)

    def _change_over(self, sub: Obj, phase: Obj) -> None:
        """The phase's items: between two periods simply from now on, within one with proration."""
        items, wanted = sub["items"]["data"], phase["items"]
        changes = [
            {"id": item["id"], "price": self.by_id[want["price"]], "quantity": want["quantity"]}
            for item, want in zip(items, wanted, strict=False)
        ]
        same = [(item["price"]["id"], item["quantity"]) for item in items] == [
            (w["price"], w["quantity"]) for w in wanted
        ]
        if same:
            return
        if items[0]["current_period_end"] != self.now():
            self.update_items(sub, changes, phase["proration_behavior"])
            return
        for item, change in zip(items, changes, strict=False):
            if change["price"]["recurring"]["interval"] != item["price"]["recurring"]["interval"]:
                sub["billing_cycle_anchor"], self._cycles[sub["id"]] = self.now(), 0
            item |= {"price": change["price"], "plan": forms.plan(change["price"]), "quantity": change["quantity"]}

    def ended(self, sub: Obj, reason: str | None) -> None:
        schedule = self.by_id.get(sub["schedule"] or "")
        if schedule is not None and schedule["status"] == "active":
            schedule |= {"status": "canceled", "canceled_at": self.now(), "current_phase": None}
            kind = "aborted" if reason == "payment_failed" else "canceled"
            self.emit(f"subscription_schedule.{kind}", schedule, {"status": "active"})
