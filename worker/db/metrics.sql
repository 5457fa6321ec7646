-- Statements of metrics and traces: what was counted, and what the books are asked for gauges. Each reads an index, no further than :most rows.

-- name: add_to_totals!
-- Sorted by the caller: whoever adds at the same time waits for nobody in a ring.
insert into metric_totals as t (name, labels, value)
select name, labels, value from unnest(:names::text[], :labels::text[], :values::float8[]) as told (name, labels, value)
on conflict (name, labels) do update set value = t.value + excluded.value;

-- name: metric_totals
select name, labels, value from metric_totals;

-- name: gauge_inbox^
-- The oldest of those whose turn is next, and the newest event of all.
select extract(epoch from now() - (select min(received_at) from (
           select received_at from inbox where state = 'waiting' order by next_at limit 1000) w))::float8 as oldest_s,
       extract(epoch from now() - (select received_at from inbox order by received_at desc limit 1))::float8 as newest_s;

-- name: gauge_troubled
select state, count(*) as many from (
    select state from inbox where state in ('quarantined', 'dead') limit :most::int) t group by state;

-- name: gauge_begun
-- Steps that are to be sent or in the middle of it; the age of the oldest whose outcome is not known.
select kind, state, count(*) as many,
       max(extract(epoch from now() - first_sent_at)) filter (where state = 'sending')::float8 as in_doubt_s
from (select kind, state, first_sent_at from actions where state in ('planned', 'sending') limit :most::int) a group by kind, state;

-- name: gauge_at_risk
select state, currency, count(*) as many, sum(amount_minor)::bigint as minor from (
    select state, currency, amount_minor from actions
    where realm = any(:realms::text[]) and kind = 'refund' and state in ('proposed', 'planned', 'sending', 'review') limit :most::int) a
group by state, currency;

-- name: gauge_refunded
-- All refunds that stand: one for each duplicate there ever was, which are few beside the payments.
select currency, count(*) as many, sum(amount_minor)::bigint as minor from actions
where realm = any(:realms::text[]) and kind = 'refund' and state = 'sent' and coalesce(stripe_status, '') not in ('failed', 'canceled')
group by currency;

-- name: gauge_reviews
-- What waits for a person, as the console's queue has it, by how long: under an hour, four hours, a day, longer.
-- `offset 0`: by key, since the planner would rather read all decisions once than know that few reviews are unanswered.
with acting as (
    select d.id, a.created_at as since from actions a
    cross join lateral (
        select d.id from decisions d where d.realm = a.realm and d.subject = a.decision_subject order by d.revision desc limit 1) d
    where a.state in ('proposed', 'review', 'failed') and a.realm = any(:realms::text[])
      and not exists (select from review_acts r where r.decision_id = d.id and r.act = 'reject' offset 0)
    limit :most::int
), asking as (
    select d.id, d.decided_at as since from decisions d
    where d.realm = any(:realms::text[]) and d.verdict = 'review'
      and not exists (select from review_acts r where r.decision_id = d.id and r.act in ('approve', 'reject') offset 0)
      and not exists (
          select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision offset 0)
    limit :most::int
), waiting as (
    select id, min(since) as since from (select * from acting union all select * from asking) w group by id
)
select width_bucket(extract(epoch from now() - since)::float8, array[3600, 14400, 86400]::float8[]) as bucket, count(*) as many,
       max(extract(epoch from now() - since))::float8 as oldest_s
from waiting group by bucket;

-- name: gauge_nights^
-- The newest night that is due, and the newest one that was done.
select (select state from schedule_runs where name = 'reconcile' order by due_at desc limit 1) as state,
       (select extract(epoch from now() - due_at)::float8 from schedule_runs
        where name = 'reconcile' and state = 'done' order by due_at desc limit 1) as done_s;

-- name: gauge_runs^
-- The newest finished nightly run of every realm, the worst of them.
select max(r.exit_code)::int as exit_code, max(r.took_s)::float8 as took_s
from unnest(:realms::text[]) as realm (name)
cross join lateral (
    select exit_code, extract(epoch from finished_at - started_at) as took_s from runs
    where runs.realm = realm.name and kind = 'nightly' and finished_at is not null order by started_at desc limit 1) r;

-- name: gauge_workers
select role, coalesce(substring(detail from ', (rung|polling),'), '') as bell, count(*) as many from workers
where seen_at > now() - interval '30 seconds' group by 1, 2;

-- name: gauge_alerts
select severity, kind, count(*) as many from (
    select severity, kind from alerts where resolved_at is null and realm = any(:realms::text[]) limit :most::int) a group by severity, kind;

-- name: gauge_disputes
select body from objects where realm = any(:realms::text[]) and kind = 'dispute' and unfinished limit :most::int;

-- name: gauge_not_good
select standing, count(*) as many from (
    select standing from accounts where realm = any(:realms::text[]) and standing <> 'good' limit :most::int) a group by standing;

-- name: gauge_accounts$
select count(*) from accounts where realm = any(:realms::text[]);

-- name: gauge_credits
-- One pass over all lots, at long intervals: an index that had the sums would cost every consumption.
select kind, sum(granted)::float8 as granted, sum(consumed)::float8 as consumed, sum(expired)::float8 as expired,
       sum(forfeited)::float8 as forfeited, sum(taken_back)::float8 as taken_back, sum(remaining)::float8 as remaining
from lots where realm = any(:realms::text[]) group by kind;

-- name: gauge_work^
-- What waits besides events: cases, and those past 24 hours (5); notices to the app; objects to be read.
select (select count(*) from cases where state = 'open' and realm = any(:realms::text[])) as cases,
       (select count(*) from cases where state = 'open' and realm = any(:realms::text[]) and due_at <= moment(realm)) as overdue,
       (select count(*) from (select from notices where state = 'waiting' limit :most::int) n) as notices,
       (select count(*) from (select from lookups where state = 'waiting' limit :most::int) l) as lookups,
       coalesce((select is_on from switches where name = 'refunds_paused'), false) as is_paused;

-- name: has_chain$
select to_regclass('audit_chain') is not null and to_regclass('audit_queue') is not null;

-- name: gauge_chain^
select coalesce((select max(seq) from audit_chain), 0) as length, (select count(*) from (select from audit_queue limit :most::int) q) as pending;

-- name: save_causes!
-- The event of this very transaction that made each action of it: the one about its own payment, or the last one about its customer.
insert into action_causes (action, realm, event_id)
select distinct on (a.id) a.id, a.realm, told.event_id
from unnest(:objects::text[], :event_ids::text[]) with ordinality as told (object, event_id, place)
join objects o on o.realm = :realm and o.id = told.object
join actions a on a.realm = o.realm and a.customer = o.customer and a.created_at = now()
order by a.id, a.subject = told.object desc, told.place desc
on conflict do nothing;

-- name: cause_of_action$
select event_id from action_causes where action = :action;
