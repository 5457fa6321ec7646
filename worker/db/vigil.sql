-- Statements of the vigil: the conditions of the alerts that no event brings, and what processes saw. All read by an index.

-- name: settle_vigil_alerts
-- Raise what holds, resolve what held before and does not any more, of the kinds that were looked at. One row for each change.
-- What has grown tenfold since people were told (or doubled, and by ten) is told again, and nobody has acknowledged so much.
with told as (
    select t.*, a.counted as was, a.resolved_at is null as is_open, coalesce(a.grown, 0) as grown,
           a.resolved_at is null and (t.many >= 10 * a.counted or t.many >= 2 * a.counted and t.many >= a.counted + 10) as grew
    from unnest(:realms::text[], :causes::text[], :kinds::text[], :severities::text[], :customers::text[], :subjects::text[],
                :sentences::text[], :many::bigint[]) as t (realm, cause, kind, severity, customer, subject, sentence, many)
    left join alerts a on a.realm = t.realm and a.cause = t.cause
), raised as (
    insert into alerts (realm, cause, kind, severity, customer, subject, sentence, counted, grown)
    select realm, cause, kind, severity, customer, subject, sentence,
           case when was is null or grew or not is_open or many * 10 <= was then many else was end,
           case when grew then grown + 1 else grown end
    from told order by realm, cause
    on conflict (realm, cause) do update
    set kind = excluded.kind, severity = excluded.severity, customer = excluded.customer, subject = excluded.subject,
        sentence = excluded.sentence, resolved_at = null, closed_at = null, counted = excluded.counted, grown = excluded.grown,
        raised_at = case when alerts.resolved_at is null then alerts.raised_at else now() end
    where alerts.resolved_at is not null
       or (alerts.severity, alerts.customer, alerts.subject, alerts.sentence, alerts.counted)
          is distinct from (excluded.severity, excluded.customer, excluded.subject, excluded.sentence, excluded.counted)
    returning kind, severity, subject, case when raised_at = now() then 'raised' else 'changed' end as change
), gone as (
    update alerts a set resolved_at = now()
    where a.resolved_at is null and a.realm = any(:here::text[]) and a.kind = any(:looked_at::text[])
      and not exists (select from told t where t.realm = a.realm and t.cause = a.cause)
    returning kind, severity, subject, 'resolved' as change
)
select * from raised union all select * from gone;

-- name: close_seen_to
-- Alerts about a review that a person closed: nothing is left to hear of, until judging has something else to say about it.
update alerts a set resolved_at = now(), closed_at = now()
where a.resolved_at is null and a.realm = any(:realms::text[])
  and a.kind in ('charge_after_cancellation', 'proration_after_cancellation', 'out_of_policy_refund', 'refunded_by_hand')
  and exists (
      select from (select d.id, d.verdict from decisions d where d.realm = a.realm and d.subject = a.subject
                   order by d.revision desc limit 1) d
      where exists (select from review_acts r where r.decision_id = d.id
                    and (r.act = 'reject' or r.act = 'note' and d.verdict = 'deny')))
returning a.cause;

-- name: open_of_kinds
select realm, cause from alerts where resolved_at is null and realm = any(:realms::text[]) and kind = any(:kinds::text[]);

-- name: troubled_actions
-- What Stripe did not carry out, and what nobody knows of whether it did. A person who closes one makes it `failed`.
select * from (
    select id, realm, kind, subject, decision_subject, customer, amount_minor, currency, error, first_sent_at, settled_at,
           stripe_id is null and first_sent_at is not null and coalesce(error, '') not like 'Stripe refused:%' as in_doubt
    from actions
    where state in ('proposed', 'review', 'failed') and state = 'review' and realm = any(:realms::text[])
      and (first_sent_at is not null and (stripe_id is null or stripe_status in ('failed', 'canceled'))
           or error like 'it could not be carried out%')
    union all
    select id, realm, kind, subject, decision_subject, customer, amount_minor, currency, error, first_sent_at, settled_at, true
    from actions
    where state in ('planned', 'sending') and state = 'sending' and realm = any(:realms::text[])
      and first_sent_at <= now() - interval '5 minutes') troubled
order by coalesce(first_sent_at, settled_at), id
limit :most::int;

-- name: held_by_limits
-- Refunds that wait for a person because of a limit of the policy. The words are those of worker.perform and handlers.court.
select realm, currency, of_day, count(*) as refunds, sum(amount_minor)::bigint as minor, min(since) as since,
       (array_agg(id order by since, id))[1 : 3] as ids
from (
    select a.realm, a.id, a.currency, a.amount_minor, coalesce(a.settled_at, a.created_at) as since,
           a.error like 'the day''s limit of%' as of_day
    from actions a join decisions d on d.id = a.decision_id
    where a.state in ('proposed', 'review', 'failed') and a.state <> 'failed' and a.kind = 'refund' and a.realm = any(:realms::text[])
      and (a.error like 'the day''s limit of%' or a.state = 'proposed' and position('above the limit of'::bytea in d.body) > 0)
    order by a.created_at limit :most::int) held
group by realm, currency, of_day;

-- name: pause_seen^
select set_at, by_name, extract(epoch from now() - set_at)::float8 as age_s,
       (select count(*) from (select from actions where state in ('planned', 'sending') and state = 'planned' and due_at <= now()
                              limit :most::int) held) as held
from switches where name = 'refunds_paused' and is_on;

-- name: oldest_review$
-- No review that was decided before it waits for an answer: what was closed or overtaken stays so, and need not be looked at again.
select coalesce(min(d.decided_at), now() - interval '1 hour') from unnest(:realms::text[]) as here (realm)
cross join lateral (
    select d.decided_at from decisions d
    where d.realm = here.realm and d.verdict = 'review' and d.decided_at >= coalesce(:from_at::timestamptz, '-infinity')
      and not exists (select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
      and not exists (select from review_acts r where r.decision_id = d.id and r.act in ('approve', 'reject'))
    order by d.decided_at limit 1) d;

-- name: late_reviews
-- Decisions in force that wait for a person since an hour or longer: since they were made, due, or refused, whichever came last.
-- First those that have an alert of their own.
with acting as (
    select d.id, d.realm, d.subject, d.customer, d.clause, d.rule,
           max(greatest(d.decided_at, a.due_at, a.settled_at)) as since, sum(a.amount_minor)::bigint as minor, max(a.currency) as currency
    from actions a
    cross join lateral (
        select * from decisions d where d.realm = a.realm and d.subject = a.decision_subject order by d.revision desc limit 1) d
    where a.state in ('proposed', 'review', 'failed') and a.created_at <= now() - interval '1 hour' and a.realm = any(:realms::text[])
      and not exists (select from review_acts r where r.decision_id = d.id and r.act = 'reject')
    group by d.id, d.realm, d.subject, d.customer, d.clause, d.rule
), unanswered as materialized (
    select d.id, d.realm, d.subject from decisions d
    where d.realm = any(:realms::text[]) and d.verdict = 'review' and d.decided_at <= now() - interval '1 hour'
      and d.decided_at >= :oldest_at
      and not exists (select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
      and not exists (select from review_acts r where r.decision_id = d.id and r.act in ('approve', 'reject'))
), asking as (
    select d.id, d.realm, d.subject, d.customer, d.clause, d.rule, d.decided_at as since, null::bigint as minor, null as currency
    from unanswered u cross join lateral (select * from decisions d where d.id = u.id limit 1) d  -- a few: never a scan of all
    where not exists (
        select from actions a where a.realm = u.realm and a.decision_subject = u.subject and a.state in ('proposed', 'review', 'failed'))
)
select *, extract(epoch from now() - since)::float8 as age_s, count(*) over () as waiting
from (select * from acting union all select * from asking) waiting
where since <= now() - interval '1 hour'
order by realm || ' review_waiting:' || subject = any(:told::text[]) desc, since, id
limit :most::int;

-- name: events_in_trouble
select realm, state, count(*) as events, min(received_at) as since, extract(epoch from now() - min(received_at))::float8 as age_s,
       (array_agg(event_id order by received_at, event_id))[1 : 3] as ids,
       (array_agg(error order by received_at, event_id))[1] as error
from (select realm, state, event_id, received_at, error from inbox
      where state in ('quarantined', 'dead') order by received_at limit :most::int) troubled
where realm = any(:realms::text[])
group by realm, state;

-- name: backlog_age^
-- By when work on it was due: what failed and waits for its next try is not late.
select min(next_at) as since, extract(epoch from now() - min(next_at))::float8 as age_s from inbox where state = 'waiting';

-- name: backlog_counted$
select count(*) from (select from inbox where state = 'waiting' limit :most::int) waiting;

-- name: versions_of_day
select api_version, count(*) as events, max(received_at) as newest_at, (array_agg(event_id order by received_at desc))[1] as event_id
from (select api_version, received_at, event_id from inbox
      where received_at > now() - interval '1 day' and state <> 'ignored' order by received_at desc limit :most::int) newest
where api_version is not null
group by api_version;

-- name: night_seen^
-- The newest due night: what became of it, and whether a run is at work. No row: this deployment had no night yet.
select due.at as due_at, extract(epoch from now() - due.at)::float8 as age_s, s.state,
       exists (select from runs where realm = :realm and kind = 'nightly' and state = 'running' and seen_at > now() - interval '10 minutes'
               and started_at > now() - interval '3 days') as at_work
from (select date_trunc('day', (now() - interval '3 hours') at time zone 'utc') at time zone 'utc' + interval '3 hours' as at) due
left join schedule_runs s on s.name = :name and s.due_at = due.at
where exists (select from schedule_runs where name = :name);

-- name: last_nights_done
select r.id, r.realm from unnest(:realms::text[]) as here (realm)
cross join lateral (
    select id, runs.realm from runs
    where runs.realm = here.realm and kind = 'nightly' and asked like 'night of %' and state = 'done' and not dry_run
    order by started_at desc limit 1) r;

-- name: report_of_night$
select report from runs where id = :id;

-- name: heartbeats
-- Whoever was seen within the last day; a worker that ends well takes its row with it.
select id, detail, started_at, seen_at, seen_at > now() - interval '2 minutes' as is_alive from workers
where role = 'worker' and seen_at > now() - interval '1 day' order by seen_at;

-- name: raise_no_worker!
-- By a web process, where no worker has been there for two minutes to say so.
insert into alerts (realm, cause, kind, severity, customer, subject, sentence)
select :realm, :cause, 'worker_silent', 'critical', '', 'workers', :sentence
where not exists (select from workers where role = 'worker' and seen_at > now() - interval '2 minutes')
on conflict (realm, cause) do update
set severity = excluded.severity, sentence = excluded.sentence, resolved_at = null,
    raised_at = case when alerts.resolved_at is null then alerts.raised_at else now() end
where alerts.resolved_at is not null or alerts.severity <> excluded.severity;

-- name: signals_seen
select name, place, since, seen_at, detail, extract(epoch from now() - seen_at)::float8 as age_s from signals;

-- name: save_signal!
-- Seen again within a day and two hours, it is the same one still.
insert into signals (name, place, detail) values (:name, :place, :detail)
on conflict (name, place) do update
set seen_at = now(), detail = excluded.detail,
    since = case when signals.seen_at < now() - interval '26 hours' then now() else signals.since end;

-- name: drop_signal!
delete from signals where name = :name and (place = :place or :place = '*');

-- name: take_look$
-- Ours if nobody looked lately; whoever takes it answers with a signal of the same name.
insert into signals (name) values (:name)
on conflict (name, place) do update set seen_at = now() where signals.seen_at < now() - :every_s::float8 * interval '1 second'
returning true;

-- name: last_received$
select extract(epoch from now() - max(received_at))::float8 from inbox;

-- name: first_night$
-- Since when this deployment is at work, as far as is known.
select min(started_at) from schedule_runs;

-- name: was_heard$
select exists (select from inbox where event_id = :id);

-- name: clock$
select clock_timestamp();
