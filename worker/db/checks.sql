-- Statements of the nightly run that hold the books against Stripe's balance transactions, and against our own rules.

-- name: money
-- What Stripe booked against what the books say moved: first the sums by currency, kind and class, then the objects that differ, all of
-- class `open` and the largest of those that explain themselves. Both sides are summed together once, with opposite signs; only objects
-- whose sum is not zero are looked at closely, and nothing that agrees leaves the database.
with booked_as as materialized (
    select * from unnest(:names::text[], :kinds::text[]) as told (name, kind)
), moves as not materialized (
    select coalesce(m.source, m.id) as object, coalesce(by_type.kind, by_category.kind) as kind, m.currency, m.amount, m.created,
           nullif(m.rate, 0) as rate
    from balance_moves m
    left join booked_as by_type on by_type.name = m.type
    left join booked_as by_category on by_category.name = m.category
    where m.run = :run and coalesce(by_type.kind, by_category.kind) is not null
), differing as materialized (
    select object from (
        select object, currency, amount, false as is_ours from moves
        union all
        select o.id, o.currency, -o.moved_minor, true from unnest(:lows::bigint[], :highs::bigint[]) as span (lo, hi)
        join objects o on o.created >= span.lo and o.created < span.hi
        where o.realm = :realm and o.kind in ('charge', 'refund', 'dispute') and o.moved_minor <> 0) both_sides
    -- bookings that come to nothing may still not be what the books say of an object from before the windows
    group by object, currency having sum(amount) <> 0 or not bool_or(is_ours)
), booked as (
    -- `native`: in the object's own currency, at the rates of its bookings; null unless every one of them told its rate
    select object, currency, max(kind) as kind, sum(amount)::bigint as amount, count(*) as moves, max(created) as last_at,
           case when bool_and(rate is not null) then sum(amount / rate) end as native,
           case when bool_and(rate is not null) then sum(abs(amount)) / nullif(sum(abs(amount / rate)), 0) end as rate
    from moves where object in (select object from differing) group by object, currency
), matched as materialized (
    select coalesce(b.object, o.id) as object, coalesce(b.kind, o.kind) as kind, b.currency as booked_in, coalesce(b.amount, 0) as amount,
           coalesce(b.moves, 0) as moves, b.last_at, b.native, b.rate, o.id is not null as known, o.currency as own,
           -- booked in two currencies, an object's money is counted in one of them: its own if that is there
           case when row_number() over (partition by coalesce(b.object, o.id)
                                        order by b.currency = o.currency desc nulls last, b.currency) = 1 then o.moved_minor end as moved
    from booked b full join (
        select * from objects where realm = :realm and id in (select object from differing) and kind in ('charge', 'refund', 'dispute')
    ) o on o.id = b.object
), compared as (
    select object, kind, coalesce(booked_in, own) as currency, booked_in, amount as at_stripe, moves, last_at, native, rate, known,
           coalesce(case when booked_in is null or own = booked_in then moved else round(moved * rate)::bigint end, 0) as ours,
           own <> booked_in and moved is not null and rate is not null as at_rate
    from matched
    union all -- booked in another currency at a rate that was not told: it stands on both sides
    select object, kind, own, booked_in, 0, moves, last_at, null, null, true, moved, false
    from matched where own <> booked_in and moved <> 0 and rate is null
), classed as materialized (
    select *, at_stripe - ours as residual, case
        when at_stripe = ours then 'same'
        when at_rate and abs(at_stripe - ours) <= moves + abs(at_stripe) * :rounding::float8 then 'rounded'
        when not known and exists (select 1 from found f where f.run = :run and f.id = object and f.state in ('staged', 'heal', 'failed'))
        then 'staged' else 'open' end as class
    from compared
), agreeing as (
    select currency, kind, sum(amount) - coalesce((select sum(c.at_stripe) from classed c where (c.currency, c.kind) = (t.currency, t.kind)), 0)
           as amount
    from moves t group by currency, kind
)
select true as is_sum, 'same' as class, currency, kind, null as object, null as booked_in, amount::bigint as at_stripe,
       amount::bigint as ours, 0::bigint as moves, null::bigint as last_at, null::float8 as native, null::float8 as rate,
       null::bytea as body, null::text as customer, false as staged
from agreeing
union all
select true, class, currency, kind, null, null, sum(at_stripe)::bigint, sum(ours)::bigint, count(*), null, null, null, null, null, false
from classed group by class, currency, kind
union all
select * from (
    select false, class, currency, kind, object, booked_in, at_stripe, ours, moves, last_at, native, rate, null::bytea, null::text,
           class = 'staged'
    from classed where class in ('rounded', 'staged') order by abs(residual) desc, object limit :most::int) listed
union all
select false, c.class, c.currency, c.kind, c.object, c.booked_in, c.at_stripe, c.ours, c.moves, c.last_at, c.native, c.rate, o.body,
       o.customer, exists (select 1 from found f where f.run = :run and f.id = c.object and f.state in ('staged', 'heal', 'failed'))
from classed c left join objects o on o.realm = :realm and o.id = c.object
where c.class = 'open';

-- name: other_money
-- What is no payment's, by Stripe's own words; and the fees, which are told apart from every amount.
select currency, coalesce(nullif(category, ''), type) as kind, sum(amount)::bigint as minor, count(*) as moves from balance_moves
where run = :run and not (type = any(:names::text[]) or category = any(:names::text[])) group by 1, 2
union all
select currency, 'fees', -sum(fee)::bigint, count(*) from balance_moves where run = :run and fee <> 0 group by currency
order by 1, 2;

-- name: money_by_day
select to_char(to_timestamp(m.created) at time zone 'utc', 'YYYY-MM-DD') as day, m.currency,
       coalesce(by_type.kind, by_category.kind) as kind, sum(m.amount)::bigint as minor, count(*) as moves
from balance_moves m
join unnest(:lows::bigint[], :highs::bigint[]) as span (lo, hi) on m.created >= span.lo and m.created < span.hi
left join unnest(:names::text[], :kinds::text[]) as by_type (name, kind) on by_type.name = m.type
left join unnest(:names::text[], :kinds::text[]) as by_category (name, kind) on by_category.name = m.category
where m.run = :run and coalesce(by_type.kind, by_category.kind) is not null
group by 1, 2, 3 order by 1, 2, 3;

-- name: unknown_sources
-- What moved money and is neither in the books nor read by this run: it began before the windows.
select distinct m.source, coalesce(by_type.kind, by_category.kind) as kind from balance_moves m
left join unnest(:names::text[], :kinds::text[]) as by_type (name, kind) on by_type.name = m.type
left join unnest(:names::text[], :kinds::text[]) as by_category (name, kind) on by_category.name = m.category
where m.run = :run and coalesce(by_type.kind, by_category.kind) is not null and m.source is not null
  and not exists (select 1 from objects o where o.realm = :realm and o.id = m.source)
  and not exists (select 1 from found f where f.run = :run and f.id = m.source)
order by m.source limit :most::int;

-- name: troubled_events
select event_id, type, state, attempts, error, created_at from inbox
where state in ('quarantined', 'dead') and realm = :realm order by received_at, event_id;

-- name: actions_in_doubt
-- Sent, perhaps: the answer never came, or a person was asked before it was known. What Stripe refused is in no doubt.
select id, kind, subject, customer, amount_minor, currency, state, first_sent_at, error, decision_id from actions
where realm = :realm and (state = 'sending' and first_sent_at <= :now::timestamptz - interval '5 minutes'
    or state = 'review' and first_sent_at is not null and stripe_id is null and coalesce(error, '') not like 'Stripe refused:%')
order by first_sent_at, id;

-- name: unconfirmed_refunds
select a.id, a.subject, a.customer, a.amount_minor, a.currency, a.stripe_id, a.stripe_status, a.first_sent_at,
       o.id is not null as known
from actions a left join objects o on o.realm = a.realm and o.id = a.stripe_id
where a.realm = :realm and a.kind = 'refund' and a.state = 'sent'
  and (o.id is null and coalesce(a.settled_at, a.first_sent_at) <= :now::timestamptz - interval '1 hour'
       or a.stripe_status in ('pending', 'requires_action') and a.first_sent_at <= :now::timestamptz - interval '10 days')
order by a.first_sent_at, a.id;

-- name: differing_refunds
-- A net with wide meshes: what is caught is decoded and looked at.
select a.id, a.subject, a.customer, a.amount_minor, a.currency, a.stripe_id, o.body
from actions a join objects o on o.realm = a.realm and o.id = a.stripe_id
where a.realm = :realm and a.kind = 'refund' and a.state = 'sent'
  and (o.moved_minor is distinct from -a.amount_minor or o.currency is distinct from a.currency
       or o.reference_a is distinct from a.subject)
order by a.first_sent_at, a.id;

-- name: overdue_lots
select id, customer, kind, clause, ends_at, remaining from lots
where realm = :realm and ends_at <= :now::timestamptz - interval '5 minutes'
  and granted - consumed - expired - forfeited - taken_back > 0
order by ends_at, id;

-- name: charges_after_end
select d.id, d.subject, d.customer, d.body from decisions d
where d.realm = :realm and d.verdict = 'review' and d.clause = '1.2'
  and not exists (select 1 from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
  and not exists (select 1 from review_acts r where r.decision_id = d.id and r.act in ('approve', 'reject'))
order by d.decided_at, d.id;

-- name: refunds_out_of_policy
-- Open alerts about refunds made by hand. A denied one cannot be approved or rejected: a person's note says that it was seen to.
select d.id, d.subject, d.customer, d.clause, d.verdict, d.body from alerts a
cross join lateral (select * from decisions d where d.realm = a.realm and d.subject = a.subject order by d.revision desc limit 1) d
where a.realm = :realm and a.resolved_at is null and a.kind in ('out_of_policy_refund', 'refunded_by_hand')
  and d.verdict in ('deny', 'review')
  and not exists (select 1 from review_acts r where r.decision_id = d.id
                  and (r.act = 'reject' or r.act = 'note' and d.verdict = 'deny'))
order by d.decided_at, d.id;

-- name: nobodys
-- Objects that wait for another one which never came. Those that wait for nothing, as a guest's payment intent, are no finding.
select o.id, o.kind, o.as_of, missing.ids as waits_for from objects o
cross join lateral (
    select array_agg(r.id) as ids from unnest(array[o.reference_a, o.reference_b]) as r (id)
    where r.id is not null and not exists (select 1 from objects p where p.realm = o.realm and p.id = r.id)) missing
where o.realm = :realm and o.customer is null and o.as_of < extract(epoch from :now::timestamptz)::bigint - 72 * 3600
  and missing.ids is not null
order by o.as_of, o.id;

-- name: planned_actions$
select count(*) from actions where realm = :realm and state = 'planned';
