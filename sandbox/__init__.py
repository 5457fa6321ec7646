"""A stateful stand-in for Stripe, so that everything can be run, tested and broken without an account.

In process:

    from sandbox import Sandbox

    async with Sandbox(webhook_url=url, webhook_secrets=["whsec_x"], api_version="2026-10-28.endive") as sb:
        books = sb.books                                  # actors: everything people and banks do
        product = books.new_product("FluxArt AI")
        price = books.new_price(product["id"], "usd", 2900, interval="month", id_="price_basic")
        customer = books.new_customer(email="a@example.com", metadata={}, fingerprint="card1")
        sub = books.subscribe(customer, [(price, 1)], metadata={"user_id": "u1"})
        invoice = books.by_id[sub["latest_invoice"]]
        charge = books.pay_again(invoice)                 # D1: a second payment of one invoice (credit=False: no credit)
        await sb.webhooks.flush(10)                       # every event had its 2xx; returns how many had not
        sb.configure({"faults": {"500_after": 0.1}})      # as POST /_sandbox/config

Other actors of `sb.books`:

- shop: new_tax_rate, new_coupon, update_price (metadata), new_method (a new card), remove_method
- payments: pay_bare, checkout (delayed methods, `extra` prices), capture, create_refund (by hand), fail_refund, settle_refund
- invoices: pay_invoice, pay_out_of_band, attach_payment, cycle_again, extra_invoice, invoice_pending, move_balance
- subscriptions: update_items, set_trial_end (also a second trial), pause, resume, pause_collection, cancel_at_period_end,
  cancel_at, cancel (prorate, invoice_now), charge_after_end (the app's mistake); `after_retries` says how dunning ends
- schedules: schedule(sub, [(items, end)], end_behavior=), set_phases, release_schedule, cancel_schedule
- banks: open_dispute (reason, amount, status, due_by), escalate, set_dispute, update_dispute, warn_of_fraud;
  `smart_disputes`: Stripe has evidence of its own at the deadline
- time: advance(seconds), set_clock(ts)

Objects are plain dicts in the newest API shape; `books.all(kind)`, `books.by_id`; line items: `books.session_lines`.

Alone: `python -m sandbox --webhook-url U --webhook-secret S` prints one JSON line `{"url": ...}`.
Clients use any key `sk_test_...` (`sk_live_...` with --livemode); keys `rk_test_read...` may only read.
Control, without a key: GET /_sandbox/books, POST /_sandbox/config, /_sandbox/clock, /_sandbox/flush,
GET /_sandbox/deliveries, POST /_sandbox/redeliver {events?}, POST /_sandbox/day {customers, seed}, GET /_sandbox/day.

For nightly runs:

- POST /_sandbox/night {objects, days, seed, from?}: days of a merchant, ending two hours ago, the clock running on from there;
  their events are held until `flush`. Answers with the truth about the seeded cases
- POST /_sandbox/harm {seed, what: count, ...}: silent acts (`sandbox.harm.KINDS`), answers with what was done
- POST /_sandbox/bulk {charges, from, to, seed}: paid invoices spread evenly, without events, for measurements
- POST /_sandbox/health {from, to}: tells of the events that were not made while `generate_events` was false
- config: `webhook` {drop, drop_seed, drop_types, enabled_events, status, v2_events}, `latency_s`, `denied` [paths that `rk_`
  keys may not use], `generate_events`, `settlement` {currency, rates}; a fault may name a `query`
"""

from sandbox.server import Sandbox

__all__ = ["Sandbox"]
