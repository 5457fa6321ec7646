-- Statements of operators' acts, and of what people read about credits and disputes.

-- name: realms_of_customer
select r.realm from unnest(:realms::text[]) as r (realm)
where exists (select from objects o where o.realm = r.realm and o.customer = :customer) order by r.realm;

-- name: save_operator_act^
insert into acts (id, realm, customer, kind, body) values (:id, :realm, :customer, :kind, :body)
on conflict (id) do nothing returning id;

-- name: account_now^
select standing, access_until, body, changed_at from accounts where realm = :realm and customer = :customer;

-- name: is_to_be_judged$
select exists (select from wakeups where realm = :realm and customer = :customer and due_at <= moment(:realm));

-- name: credits_left$
select coalesce(sum(available), 0)::bigint from customer_credits where realm = :realm and customer = :customer;

-- name: consume_by_hand^
select outcome, consumed, remaining, available from consume_credits(:realm, :customer, :key, :credits::bigint);

-- name: read_lots
select id, kind, clause, granted_at, ends_at, cause, granted, consumed, expired, forfeited, taken_back, remaining from lots
where realm = :realm and customer = :customer order by granted_at, id;

-- name: read_entries
select id, lot, kind, amount, clause, cause, effective_at, recorded_at from entries
where realm = :realm and customer = :customer order by id;

-- name: dispute_decisions
-- The decisions in force about disputes (7), by the disputes, which are few beside the decisions about payments.
select o.realm, d.subject, d.customer, d.verdict, o.body as fact
from objects o
cross join lateral (
    select d.subject, d.customer, d.verdict, d.clause from decisions d
    where d.realm = o.realm and d.subject = o.id order by d.revision desc limit 1) d
where o.realm = any(:realms::text[]) and o.kind = 'dispute' and d.clause = '7'
order by d.subject;

-- name: open_dispute_decisions
-- Of those, without what is over for good and waits for nobody: what is not finished; what no release has told of yet, which may
-- be open; and what is over, with a review that nobody answered.
with unfinished as (
    select realm, id, body from objects where realm = any(:realms::text[]) and kind = 'dispute' and unfinished
    union all
    select realm, id, body from objects where realm = any(:realms::text[]) and kind = 'dispute' and unfinished is null
), asking as materialized (
    select d.realm, d.subject, d.revision, d.id from decisions d
    where d.realm = any(:realms::text[]) and d.verdict = 'review' and d.clause = '7'
      and not exists (select from review_acts r where r.decision_id = d.id and r.act in ('approve', 'reject'))
)
select o.realm, d.subject, d.customer, d.verdict, o.body as fact
from unfinished o
cross join lateral (
    select d.subject, d.customer, d.verdict, d.clause from decisions d
    where d.realm = o.realm and d.subject = o.id order by d.revision desc limit 1) d
where d.clause = '7'
union all
select o.realm, d.subject, d.customer, d.verdict, o.body
from asking a
cross join lateral (
    select d.id, d.subject, d.customer, d.verdict from decisions d
    where d.realm = a.realm and d.subject = a.subject order by d.revision desc limit 1) d
join objects o on o.realm = a.realm and o.id = a.subject
where d.id = a.id and o.kind = 'dispute' and o.unfinished is false
order by 2;
