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

Other actors of `sb.books`: pay_bare, checkout, pay_invoice, pay_out_of_band, attach_payment, cycle_again, extra_invoice,
update_items, cancel, cancel_at_period_end, set_trial_end, new_method (a new card), create_refund (by hand),
fail_refund, settle_refund, open_dispute, escalate, set_dispute, warn_of_fraud, move_balance, capture,
advance(seconds), set_clock(ts). Objects are plain dicts in the newest API shape; `books.all(kind)`, `books.by_id`.

Alone: `python -m sandbox --webhook-url U --webhook-secret S` prints one JSON line `{"url": ...}`.
Clients use any key `sk_test_...` (`sk_live_...` with --livemode); keys `rk_test_read...` may only read.
Control, without a key: GET /_sandbox/books, POST /_sandbox/config, /_sandbox/clock, /_sandbox/flush,
GET /_sandbox/deliveries, POST /_sandbox/day {customers, seed}, GET /_sandbox/day.
"""

from sandbox.server import Sandbox

__all__ = ["Sandbox"]
