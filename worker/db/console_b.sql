-- Statements of the console's pages about customers, events, runs, the policy, alerts, and its search. Each reads an index, and a bounded part of it.

-- name: console_not_good
-- Customers that are flagged or suspended, the newest change first.
select realm, customer, standing, holds, access_until, changed_at from accounts
where realm = any(:realms::text[]) and standing <> 'good'
  and changed_at <= coalesce(:before_at::timestamptz, 'infinity')
  and (changed_at, customer) < (coalesce(:before_at::timestamptz, 'infinity'), coalesce(:before_id::text, ''))
order by changed_at desc, customer desc
limit :most::int;

-- name: console_judged
-- The newest decisions of each verdict, each found by its own descent of the index, put together again.
select found.realm, found.id, found.customer, found.subject, found.clause, found.verdict, found.decided_at
from unnest(:realms::text[]) as here (realm)
cross join unnest(array['refund', 'review', 'deny', 'none']) as said (verdict)
cross join lateral (
    select d.realm, d.id, d.customer, d.subject, d.clause, d.verdict, d.decided_at from decisions d
    where d.realm = here.realm and d.verdict = said.verdict
      and d.decided_at <= coalesce(:before_at::timestamptz, 'infinity')
      and (d.decided_at, d.id) < (coalesce(:before_at::timestamptz, 'infinity'), coalesce(:before_id::text, ''))
    order by d.decided_at desc, d.id desc
    limit :most::int
) found
order by found.decided_at desc, found.id desc
limit :most::int;

-- name: console_accounts
select realm, customer, standing, holds, access_until from accounts where realm = any(:realms::text[]) and customer = any(:customers::text[]);

-- name: console_revisions
-- Every revision of these decisions, newest first.
select subject, revision, id, clause, rule, verdict, policy_version, body, decided_at from decisions
where realm = :realm and subject = any(:subjects::text[]) order by subject, revision desc
limit :most::int;

-- name: console_events
-- Looks at no more events than `window`, newest first, and tells where it stopped: a rare type must not cost a scan.
with looked as materialized (
    select event_id, realm, type, api_version, created_at, received_at, state, attempts, next_at, error, settled_at from inbox
    where received_at <= coalesce(:before_at::timestamptz, 'infinity')
      and (received_at, event_id) < (coalesce(:before_at::timestamptz, 'infinity'), coalesce(:before_id::text, ''))
    order by received_at desc, event_id desc
    limit :window::int
), stopped as (
    select count(*) as looked, min(received_at) as looked_at from looked
), matching as (
    select * from looked
    where (:state::text is null or state = :state) and (:type::text is null or type like :type)
    order by received_at desc, event_id desc
    limit :most::int
)
select stopped.looked, stopped.looked_at,
       (select min(l.event_id) from looked l where l.received_at = stopped.looked_at) as looked_id, matching.*
from stopped left join matching on true
order by matching.received_at desc, matching.event_id desc;

-- name: console_events_troubled
-- The same of what is quarantined or dead, by the narrow index over these.
with looked as materialized (
    select event_id, realm, type, api_version, created_at, received_at, state, attempts, next_at, error, settled_at from inbox
    where state in ('quarantined', 'dead')
      and received_at <= coalesce(:before_at::timestamptz, 'infinity')
      and (received_at, event_id) < (coalesce(:before_at::timestamptz, 'infinity'), coalesce(:before_id::text, ''))
    order by received_at desc, event_id desc
    limit :window::int
), stopped as (
    select count(*) as looked, min(received_at) as looked_at from looked
), matching as (
    select * from looked
    where state = :state and (:type::text is null or type like :type)
    order by received_at desc, event_id desc
    limit :most::int
)
select stopped.looked, stopped.looked_at,
       (select min(l.event_id) from looked l where l.received_at = stopped.looked_at) as looked_id, matching.*
from stopped left join matching on true
order by matching.received_at desc, matching.event_id desc;

-- name: console_events_waiting
-- What waits, by the index of the queue: the one that is due first comes first.
with looked as materialized (
    select event_id, realm, type, api_version, created_at, received_at, state, attempts, next_at, error, settled_at from inbox
    where state = 'waiting'
      and next_at >= coalesce(:after_at::timestamptz, '-infinity')
      and (next_at, event_id) > (coalesce(:after_at::timestamptz, '-infinity'), coalesce(:after_id::text, ''))
    order by next_at, event_id
    limit :window::int
), stopped as (
    select count(*) as looked, max(next_at) as looked_at from looked
), matching as (
    select * from looked where :type::text is null or type like :type order by next_at, event_id limit :most::int
)
select stopped.looked, stopped.looked_at,
       (select max(l.event_id) from looked l where l.next_at = stopped.looked_at) as looked_id, matching.*
from stopped left join matching on true
order by matching.next_at, matching.event_id;

-- name: console_troubled_counts
-- Counted no further than somebody asks.
select said.state, (select count(*) from (
    select from inbox i where i.state in ('quarantined', 'dead') and i.state = said.state limit :most::int) counted) as events
from unnest(array['quarantined', 'dead']) as said (state);

-- name: console_runs
-- The report is opened once for each row shown; only its few figures leave the database.
select r.id, r.realm, r.kind, r.dry_run, r.asked, r.state, r.stage, r.exit_code, r.attempts, r.started_at, r.seen_at, r.finished_at,
    to_timestamp((convert_from(r.plan, 'UTF8')::json -> 'windows' -> 0 ->> 'lo')::bigint) as since,
    to_timestamp((convert_from(r.plan, 'UTF8')::json ->> 'upper')::bigint) as until,
    told.result, told.drift, told.unread_total, told.healed
from (
    select * from runs r
    where r.realm = any(:realms::text[])
      and r.started_at <= coalesce(:before_at::timestamptz, 'infinity')
      and (r.started_at, r.id) < (coalesce(:before_at::timestamptz, 'infinity'), coalesce(:before_id::text, ''))
    order by r.started_at desc, r.id desc
    limit :most::int
) r
left join lateral json_to_record(convert_from(r.report, 'UTF8')::json)
    as told (result text, drift bigint, unread_total bigint, healed bigint) on r.report is not null
order by r.started_at desc, r.id desc;

-- name: console_run^
select id, realm, kind, dry_run, asked, state, stage, exit_code, attempts, started_at, seen_at, finished_at, report from runs
where realm = any(:realms::text[]) and id = :id;

-- name: console_unread
select list, what, why from unread where run = :run limit :most::int;

-- name: console_customers_by_key
-- Whom an e-mail address (as its hash) or the app's own id of a person names.
select distinct realm, customer from links where realm = any(:realms::text[]) and key = any(:keys::text[]) order by realm, customer
limit :most::int;

-- name: console_decision_of^
select id, realm, subject, customer from decisions where id = :id and realm = any(:realms::text[]);

-- name: console_case_exists$
select exists (select from cases where id = :id and realm = any(:realms::text[]));

-- name: console_event_exists$
select exists (select from inbox where event_id = :id);

-- name: console_policy_versions
select id, encode(sha256, 'hex') as sha256, versions, agreements, worker, seen_at from policy_versions
where :before_id::bigint is null or id < :before_id
order by id desc limit :most::int;

-- name: console_policy_pair
-- A recorded policy and the one before it.
select id, body from policy_versions where id <= :id order by id desc limit 2;

-- name: console_open_alerts
-- What is raised, the worst first; few enough to be shown whole, and cut off where that is wrong.
select realm, cause, kind, severity, customer, subject, sentence, raised_at, flaps, acked_by, acked_at, ack_note from alerts
where realm = any(:realms::text[]) and resolved_at is null
order by array_position(array['critical', 'warning', 'note'], severity), raised_at desc, cause
limit :most::int;

-- name: console_alerts_over
-- What is over since a moment, the newest first.
select realm, cause, kind, severity, customer, subject, sentence, raised_at, resolved_at, acked_by from alerts
where realm = any(:realms::text[]) and resolved_at > :since and resolved_at <= coalesce(:before_at::timestamptz, 'infinity')
  and (resolved_at, cause) < (coalesce(:before_at::timestamptz, 'infinity'), coalesce(:before_id::text, ''))
order by resolved_at desc, cause desc
limit :most::int;
