"""The wire of what runs on: subscriptions with their trials, the schedules that change and end them, purchases through Checkout.

Only the fields we read, of the old and the new shapes: `handlers.events` says which those are. `fact(as_of)` is the object
as our value, told at `as_of` (unix seconds); it raises `Unreadable`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from handlers.customer import (
    CustomerId,
    InvoiceId,
    PriceCredits,
    ScheduleId,
    Seconds,
    SessionLine,
    Subscription,
    SubscriptionId,
    SubscriptionItem,
    SubscriptionItemId,
    SubscriptionSchedule,
    Trial,
)
from handlers.wire import (
    TEXT,
    Count,
    Currency,
    ObjectWire,
    Part,
    Ref,
    Signed,
    Text,
    Time,
    id_of,
    metadata_of,
)
from handlers.wire_billing import Price


class _Item(Part):
    id: Annotated[SubscriptionItemId, TEXT]
    price: Price | None = None
    plan: Price | None = None
    quantity: Count | None = None
    current_period_start: Time | None = None
    current_period_end: Time | None = None
    current_trial: Part | None = None


class _ItemList(Part):
    data: list[_Item]
    has_more: bool | None = None


class _Cancellation(Part):
    reason: Text | None = None


class SubscriptionWire(ObjectWire, tag="subscription"):
    created: Time
    status: Text
    currency: Currency | None = None
    customer: Ref[CustomerId] = None
    items: _ItemList | None = None
    current_period_start: Time | None = None  # old
    current_period_end: Time | None = None  # old
    cancel_at_period_end: bool | None = None
    cancel_at: Time | None = None
    canceled_at: Time | None = None
    ended_at: Time | None = None
    cancellation_details: _Cancellation | None = None
    trial_start: Time | None = None
    trial_end: Time | None = None
    latest_invoice: Ref[InvoiceId] = None
    pause_collection: Part | None = None
    schedule: Ref[ScheduleId] = None
    metadata: dict[str, Any] | None = None
    test_clock: Ref[str] = None

    def fact(self, as_of: Seconds) -> Subscription:
        items = self.items.data if self.items else []
        return Subscription(
            id=self.id,
            as_of=as_of,
            customer=id_of(self.customer),
            status=self.status,
            currency=self.currency or "",
            created=self.created,
            items=tuple([self.item(number, item) for number, item in enumerate(items)]),
            items_complete=self.items is not None and self.items.has_more is False,
            metadata=metadata_of(self.metadata),
            cancel_at_period_end=bool(self.cancel_at_period_end),
            cancel_at=self.cancel_at,
            canceled_at=self.canceled_at,
            ended_at=self.ended_at,
            cancellation_reason=self.cancellation_details.reason if self.cancellation_details else None,
            trial_start=self.trial_start,
            trial_end=self.trial_end,
            latest_invoice=id_of(self.latest_invoice),
            collection_paused=self.pause_collection is not None,
            schedule=id_of(self.schedule),
            trials=self.trials(as_of),
            price_credits=_price_credits(items, as_of),
            test_clock=self.test_clock is not None,
        )

    def trials(self, as_of: Seconds) -> tuple[Trial, ...]:
        """The trial that it tells of, running or over, if any: of several Stripe tells only of one."""
        if self.trial_start is None or self.trial_end is None:
            return ()
        tried = [(item.price or item.plan, item.quantity) for item in (self.items.data if self.items else [])]
        items = sorted((price.id, 1 if quantity is None else quantity) for price, quantity in tried if price)
        trial = Trial(start=self.trial_start, end=self.trial_end, told_at=as_of, items=tuple(items), items_at=as_of)
        return (trial,)

    def item(self, number: int, item: _Item) -> SubscriptionItem:
        """The item at `number`; before basil all items shared the subscription's period."""
        price = item.price or item.plan
        start = self.current_period_start if item.current_period_start is None else item.current_period_start
        end = self.current_period_end if item.current_period_end is None else item.current_period_end
        if price is None:
            raise self.unfit(f"items.data.{number}.price", "is missing")
        if start is None or end is None:
            side = "start" if start is None else "end"
            raise self.unfit(f"items.data.{number}.current_period_{side}", "is missing")
        return SubscriptionItem(
            id=item.id,
            price=price.id,
            product=id_of(price.product),
            quantity=item.quantity,
            interval=price.rhythm.interval or "",
            interval_count=price.rhythm.interval_count or 1,
            metered=price.metered,
            period_start=start,
            period_end=end,
            trial_offer=item.current_trial is not None,
        )


def _price_credits(items: Iterable[_Item], as_of: Seconds) -> tuple[PriceCredits, ...]:
    """What the metadata of the items' prices says about credits, each price once, in the order that `gather` keeps."""
    told = {}
    for item in items:
        price = item.price or item.plan
        if price and (price.credits is not None or price.trial_credits is not None):
            told[price.id] = PriceCredits(
                price=price.id, credits=price.credits, trial_credits=price.trial_credits, since=as_of
            )
    return tuple(told[price] for price in sorted(told))


class _Phase(Part):
    end_date: Time | None = None


class SubscriptionScheduleWire(ObjectWire, tag="subscription_schedule"):
    created: Time
    status: Text
    customer: Ref[CustomerId] = None
    subscription: Ref[SubscriptionId] = None
    released_subscription: Ref[SubscriptionId] = None
    end_behavior: Text | None = None
    phases: list[_Phase] | None = None
    completed_at: Time | None = None
    canceled_at: Time | None = None
    released_at: Time | None = None

    def fact(self, as_of: Seconds) -> SubscriptionSchedule:
        return SubscriptionSchedule(
            id=self.id,
            as_of=as_of,
            customer=id_of(self.customer),
            subscription=id_of(self.subscription) or id_of(self.released_subscription),
            status=self.status,
            end_behavior=self.end_behavior or "",
            ends_at=self.phases[-1].end_date if self.phases else None,
            created=self.created,
            completed_at=self.completed_at,
            canceled_at=self.canceled_at,
            released_at=self.released_at,
        )


class SessionLineWire(ObjectWire, tag="item"):
    """A line item of a Checkout session. `amount_total` is what was paid for it: discounts and taxes are in it."""

    amount_total: Signed
    currency: Currency
    price: Price | None = None
    quantity: Count | None = None

    def line(self) -> SessionLine:
        price = self.price
        return SessionLine(
            id=self.id,
            price=price.id if price else None,
            quantity=1 if self.quantity is None else self.quantity,
            amount_minor=self.amount_total,
            currency=self.currency,
            recurring=bool(price and (price.recurring or price.type == "recurring")),
            credits=price.credits if price else None,
        )
