-- Statements of the console's pages of work: the overview, reviews, refunds, chargebacks and cases. All of them read by an index.

-- name: desk_queue_page
-- What waits for a person, longest first, from behind (:after_at, :after_id): open actions of decisions in force that nobody
-- rejected (one row for each decision), then reviews without an open action that nobody answered. Two short sorted lists.
with acting as (
    select a.created_at as since, d.id, d.realm, d.subject, d.clause
    from actions a
    cross join lateral (
        select d.id, d.realm, d.subject, d.clause from decisions d
        where d.realm = a.realm and d.subject = a.decision_subject order by d.revision desc limit 1) d
    where a.state in ('proposed', 'review', 'failed') and a.realm = any(:realms::text[])
      and (:clause::text is null or d.clause = :clause)
      and (:after_at::timestamptz is null or (a.created_at, d.id) > (:after_at, :after_id::text))
      and not exists (
          select from actions b where b.realm = a.realm and b.decision_subject = a.decision_subject
          and b.state in ('proposed', 'review', 'failed') and (b.created_at, b.id) < (a.created_at, a.id))
      and not exists (select from review_acts r where r.decision_id = d.id and r.act = 'reject')
    order by a.created_at, d.id
    limit :most::int
), asking as (
    select d.decided_at as since, d.id, d.realm, d.subject, d.clause
    from decisions d
    where d.realm = any(:realms::text[]) and d.verdict = 'review' and (:clause::text is null or d.clause = :clause)
      and (:after_at::timestamptz is null or (d.decided_at, d.id) > (:after_at, :after_id::text))
      and not exists (select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
      and not exists (select from review_acts r where r.decision_id = d.id and r.act in ('approve', 'reject'))
      and not exists (
          select from actions a where a.realm = d.realm and a.decision_subject = d.subject and a.state in ('proposed', 'review', 'failed'))
    order by d.decided_at, d.id
    limit :most::int
)
select w.since, d.id, d.realm, d.subject, d.revision, d.body, d.decided_at
from (select * from acting union all select * from asking order by since, id limit :most::int) w
join decisions d on d.id = w.id
order by w.since, w.id;

-- name: desk_queue_counts
-- How many wait, by clause, counted no further than somebody asks: nothing here has to be sorted before it is counted.
select clause, count(*) as waiting from (
    select d.clause
    from actions a
    cross join lateral (
        select d.id, d.clause from decisions d
        where d.realm = a.realm and d.subject = a.decision_subject order by d.revision desc limit 1) d
    where a.state in ('proposed', 'review', 'failed') and a.realm = any(:realms::text[])
      and not exists (
          select from actions b where b.realm = a.realm and b.decision_subject = a.decision_subject
          and b.state in ('proposed', 'review', 'failed') and (b.created_at, b.id) < (a.created_at, a.id))
      and not exists (select from review_acts r where r.decision_id = d.id and r.act = 'reject')
    union all
    select d.clause from decisions d
    where d.realm = any(:realms::text[]) and d.verdict = 'review'
      and not exists (select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
      and not exists (select from review_acts r where r.decision_id = d.id and r.act in ('approve', 'reject'))
      and not exists (
          select from actions a where a.realm = d.realm and a.decision_subject = d.subject and a.state in ('proposed', 'review', 'failed'))
    limit :most::int
) waiting group by clause order by clause;

-- name: desk_is_waiting$
-- Whether a decision in force still waits for a person. `offset 0`: by key, since the planner would rather hash all answers.
select not exists (select from review_acts r where r.decision_id = d.id and r.act = 'reject' offset 0)
   and (exists (select from actions a where a.realm = d.realm and a.decision_subject = d.subject and a.state in ('proposed', 'review', 'failed'))
        or d.verdict = 'review' and not exists (select from review_acts r where r.decision_id = d.id and r.act = 'approve' offset 0))
from decisions d where d.id = :id;

-- name: desk_refunds_page
-- Newest first, before (:before_at, :before_id): a few of each state by its index, then the newest of them all.
select a.id, a.realm, a.kind, a.subject, a.decision_subject, a.decision_id, a.customer, a.amount_minor, a.currency, a.state, a.stripe_id,
       a.stripe_status, a.error, a.approved_by, a.due_at, a.created_at, a.first_sent_at, a.settled_at, d.clause, d.rule
from unnest(:realms::text[]) as realm(name)
cross join unnest(:states::text[]) as state(name)
cross join lateral (
    select * from actions a
    where a.kind = 'refund' and a.realm = realm.name and a.state = state.name
      and (:before_at::timestamptz is null or (a.created_at, a.id) < (:before_at, :before_id::text))
    order by a.created_at desc, a.id desc limit :most::int) a
join decisions d on d.id = a.decision_id
order by a.created_at desc, a.id desc
limit :most::int;

-- name: desk_returned_since
-- What went back at Stripe since a moment, by currency; a refund that Stripe failed later came back to the merchant.
select currency, count(*) as refunds, sum(amount_minor)::bigint as minor from actions
where realm = any(:realms::text[]) and kind = 'refund' and first_sent_at is not null and first_sent_at >= :since
  and state = 'sent' and coalesce(stripe_status, '') not in ('failed', 'canceled')
group by currency order by currency;

-- name: desk_at_risk
-- Refunds that are prepared, on their way or in doubt, by currency and state.
select currency, state, count(*) as refunds, sum(amount_minor)::bigint as minor from actions
where realm = any(:realms::text[]) and kind = 'refund' and state in ('proposed', 'planned', 'sending', 'review')
group by currency, state order by currency, state;

-- name: desk_returned_by_day
select (first_sent_at at time zone 'UTC')::date as day, currency, count(*) as refunds, sum(amount_minor)::bigint as minor from actions
where realm = any(:realms::text[]) and kind = 'refund' and first_sent_at is not null and first_sent_at >= :since
  and state = 'sent' and coalesce(stripe_status, '') not in ('failed', 'canceled')
group by 1, 2 order by 1, 2;

-- name: desk_decided_by_day
-- Without those that say `none`: nearly every payment has one.
select (decided_at at time zone 'UTC')::date as day, verdict, count(*) as decisions from decisions
where realm = any(:realms::text[]) and verdict in ('refund', 'review', 'deny') and decided_at >= :since
group by 1, 2 order by 1, 2;

-- name: desk_troubled_events
select state, count(*) as events, max(received_at) as newest_at from inbox where state in ('quarantined', 'dead') group by state;

-- name: desk_backlog^
-- The events that wait, counted no further than somebody asks, and the one that has waited longest.
select count(*) as waiting, min(received_at) as oldest_at
from (select received_at from inbox where state = 'waiting' order by next_at limit :most::int) as waiting;

-- name: desk_open_alerts
select severity, count(*) as alerts from alerts where realm = any(:realms::text[]) and resolved_at is null group by severity;

-- name: desk_worst_alerts
select realm, cause, kind, severity, customer, subject, sentence, raised_at from alerts
where realm = any(:realms::text[]) and resolved_at is null
order by array_position(array['critical', 'warning', 'note'], severity), raised_at desc, cause limit :most::int;

-- name: desk_last_nights
-- The newest nightly run of each realm; the report is opened for its few figures only.
select r.id, r.realm, r.state, r.stage, r.asked, r.started_at, r.seen_at, r.finished_at, told.result, told.drift, told.healed, told.unread_total
from unnest(:realms::text[]) as realm(name)
cross join lateral (
    select * from runs where runs.realm = realm.name and runs.kind = 'nightly' order by runs.started_at desc limit 1) r
left join lateral json_to_record(convert_from(r.report, 'UTF8')::json)
    as told (result text, drift bigint, unread_total bigint, healed bigint) on r.report is not null
order by r.started_at desc;

-- name: desk_cases_open_page
select id, realm, customer, state, assigned_to, opened_at, due_at, alert_at, answered_at, body, moment(realm) as now from cases
where state = 'open' and realm = any(:realms::text[])
  and (:after_at::timestamptz is null or (due_at, id) > (:after_at, :after_id::text))
order by due_at, id limit :most::int;

-- name: desk_cases_over_page
select c.id, c.realm, c.customer, c.state, c.assigned_to, c.opened_at, c.due_at, c.alert_at, c.answered_at, c.body, moment(c.realm) as now
from unnest(:realms::text[]) as realm(name)
cross join lateral (
    select * from cases where cases.realm = realm.name and cases.state <> 'open'
      and (:after_at::timestamptz is null or (cases.opened_at, cases.id) < (:after_at, :after_id::text))
    order by cases.opened_at desc, cases.id desc limit :most::int) c
order by c.opened_at desc, c.id desc limit :most::int;

-- name: desk_cases_clock^
select count(*) as waiting, count(*) filter (where due_at <= moment(realm)) as overdue, min(due_at) as next_due_at
from cases where state = 'open' and realm = any(:realms::text[]);
