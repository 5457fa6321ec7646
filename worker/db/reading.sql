-- Statements of the command line: what people and programs read, and the few things they may change by hand.

-- name: realms_seen
-- Every realm with facts in it: one index descent for each, however many facts there are.
with recursive seen as (
    select min(realm) as realm from objects
    union all
    select (select min(o.realm) from objects o where o.realm > seen.realm) from seen where seen.realm is not null
)
select realm from seen where realm is not null;

-- name: inbox_counts
select state, count(*) as events, min(received_at) as oldest_at from inbox group by state;

-- name: verdict_counts
select d.verdict, count(*) as decisions from decisions d
where d.realm = any(:realms::text[])
  and not exists (select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
group by d.verdict;

-- name: action_counts
select kind, state, count(*) as actions from actions where realm = any(:realms::text[]) group by kind, state order by kind, state;

-- name: refunded_by_currency
select currency, count(*) as refunds, sum(amount_minor)::bigint as minor from actions
where realm = any(:realms::text[]) and kind = 'refund' and state = 'sent' and coalesce(stripe_status, '') not in ('failed', 'canceled')
group by currency order by currency;

-- name: pause_switch^
select is_on, by_name, reason, set_at from switches where name = 'refunds_paused';

-- name: lock_pause_switch^
select is_on, by_name, reason, set_at from switches where name = 'refunds_paused' for update;

-- name: set_pause_switch!
insert into switches (name, is_on, by_name, reason) values ('refunds_paused', :is_on, :by_name, :reason)
on conflict (name) do update set is_on = excluded.is_on, by_name = excluded.by_name, reason = excluded.reason, set_at = now();

-- name: workers_seen
select role, detail, started_at, seen_at from workers order by seen_at desc;

-- name: read_events
select event_id, realm, type, api_version, created_at, received_at, state, attempts, next_at, error, settled_at from inbox
where (:state::text is null or state = :state) and (:type::text is null or type like replace(:type, '*', '%'))
order by received_at desc, event_id desc
limit :most::int;

-- name: read_event^
select event_id, realm, type, api_version, created_at, received_at, state, attempts, next_at, error, settled_at, payload
from inbox where event_id = :id;

-- name: replay_events
-- An event of the other mode stays ignored: its facts belong into another deployment's books. One whose payload is gone has nothing to say.
update inbox set state = 'waiting', attempts = 0, next_at = now(), error = null, settled_at = null
where event_id = any(:ids::text[]) and state in ('done', 'quarantined', 'dead') and octet_length(payload) > 0
returning event_id;

-- name: replay_state
update inbox set state = 'waiting', attempts = 0, next_at = now(), error = null, settled_at = null
where state = :state and state in ('quarantined', 'dead') and octet_length(payload) > 0
returning event_id;

-- name: read_decisions
select d.id, d.realm, d.subject, d.revision, d.body, d.decided_at from decisions d
where d.realm = any(:realms::text[])
  and (:customer::text is null or d.customer = :customer)
  and (:verdict::text is null or d.verdict = :verdict)
  and (:since::timestamptz is null or d.decided_at >= :since)
  and (:history::bool or not exists (
      select 1 from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision))
order by d.decided_at desc, d.id
limit :most::int;

-- name: decisions_of_subjects
-- All revisions, newest first.
select id, realm, subject, revision, body, decided_at from decisions
where realm = :realm and subject = any(:subjects::text[]) order by subject, revision desc;

-- name: decisions_by_prefix
select id, realm, subject, customer, revision from decisions
where realm = any(:realms::text[]) and starts_with(id, :prefix) order by id limit 3;

-- name: decision_in_force^
select id, realm, subject, customer, revision, body, decided_at from decisions
where realm = any(:realms::text[]) and subject = :subject order by revision desc limit 1;

-- name: read_actions
select id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency, state, stripe_id, stripe_status, error,
       approved_by, due_at, created_at, first_sent_at, settled_at
from actions where realm = any(:realms::text[]) and decision_subject = any(:subjects::text[]) order by step, id;

-- name: read_action^
select id, realm, kind, subject, decision_subject, customer from actions where realm = any(:realms::text[]) and id = :id;

-- name: actions_about
-- What was begun or prepared about these very objects, whoever decided it.
select id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency, state, stripe_id, stripe_status, error,
       approved_by, due_at, created_at, first_sent_at, settled_at
from actions where realm = :realm and (subject = any(:subjects::text[]) or decision_subject = any(:subjects::text[]))
order by created_at, step, id;

-- name: read_refunds
select a.id, a.realm, a.kind, a.subject, a.decision_id, a.customer, a.amount_minor, a.currency, a.state, a.stripe_id, a.stripe_status,
       a.error, a.approved_by, a.due_at, a.created_at, a.first_sent_at, a.settled_at, d.body
from actions a join decisions d on d.id = a.decision_id
where a.realm = any(:realms::text[]) and a.kind = 'refund'
order by a.created_at desc, a.id
limit :most::int;

-- name: read_acts
select decision_id, act, by_name, note, acted_at from review_acts where decision_id = any(:ids::text[]) order by id;

-- name: read_waiting
-- What waits for a person: a review that nobody has answered, and actions that are proposed, refused or closed without an answer since.
with candidates as (
    select d.id from actions a
    cross join lateral (
        select d.id from decisions d where d.realm = a.realm and d.subject = a.decision_subject order by d.revision desc limit 1) d
    where a.realm = any(:realms::text[]) and a.state in ('proposed', 'review', 'failed')
    union
    select d.id from decisions d
    where d.realm = any(:realms::text[]) and d.verdict = 'review'
      and not exists (select 1 from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
      and not exists (select 1 from review_acts r where r.decision_id = d.id and r.act = 'approve')
)
select d.id, d.realm, d.subject, d.revision, d.body, d.decided_at from candidates c join decisions d on d.id = c.id
where not exists (select 1 from review_acts r where r.decision_id = d.id and r.act = 'reject')
order by d.decided_at, d.id;

-- name: lock_actions
select id, kind, subject, decision_subject, amount_minor, currency, state, stripe_id, stripe_status, error, approved_by, created_at, first_sent_at,
       settled_at
from actions where realm = :realm and (decision_subject = :decision_subject or kind = 'refund' and subject = :charge::text)
order by step, id for update;

-- name: save_act!
insert into review_acts (decision_id, act, by_name, note) values (:decision_id, :act, :by_name, :note);

-- name: propose_refund^
-- A refund that a person asked for where the rules could prove no amount. Never a second one for a charge: the row is unique.
insert into actions (id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency, state, due_at, next_at)
values (:id, :realm, 'refund', :subject, :decision_subject, :decision_id, :customer, :amount_minor::bigint, :currency, 'proposed', now(), now())
on conflict (realm, kind, subject) do update
set decision_subject = excluded.decision_subject, decision_id = excluded.decision_id, customer = excluded.customer,
    amount_minor = excluded.amount_minor, currency = excluded.currency, state = 'proposed', approved_by = '{}', error = null,
    settled_at = null, due_at = now(), next_at = now()
where actions.state = 'withdrawn' and actions.first_sent_at is null and actions.stripe_id is null
returning id;

-- name: plan_actions
update actions set state = 'planned', due_at = now(), next_at = now(), attempts = 0, error = null, settled_at = null,
    approved_by = approved_by || :names::text[]
where id = any(:ids::text[]) and state in ('proposed', 'review', 'failed') and stripe_id is null
returning id;

-- name: close_actions
-- What was never sent is withdrawn; what Stripe was asked for once keeps its trace and is closed as failed.
update actions set state = case when first_sent_at is null then 'withdrawn' else 'failed' end, settled_at = now(), error = :error
where id = any(:ids::text[]) and state in ('proposed', 'planned', 'review', 'failed')
returning id;

-- name: find_objects
select realm, id, kind, customer, body from objects where realm = any(:realms::text[]) and id = any(:ids::text[]);

-- name: referring_objects
-- What names one of these objects and whose customer nobody knows yet.
select realm, id, kind, body from objects
where realm = :realm and customer is null and (reference_a = any(:ids::text[]) or reference_b = any(:ids::text[])) limit 50;

-- name: find_operator_act^
select realm, customer, body from acts where realm = any(:realms::text[]) and id = :id;

-- name: find_lot^
select realm, customer, id from lots where realm = any(:realms::text[]) and id = :id;

-- name: lots_of_outage
-- A range of the primary key: `;` comes right after `:`.
select realm, id, customer, kind, clause, granted_at, ends_at, cause, granted, consumed, expired, forfeited, taken_back, remaining from lots
where realm = any(:realms::text[]) and id >= 'service:' || :id || ':' and id < 'service:' || :id || ';' order by id;

-- name: alerts_of_customer
select cause, kind, severity, subject, sentence, raised_at, resolved_at from alerts
where realm = :realm and customer = :customer and (:resolved::bool or resolved_at is null) order by raised_at, cause;

-- name: cases_of_customer
select id, realm, customer, state, assigned_to, opened_at, due_at, alert_at, answered_at, body, moment(realm) as now from cases
where realm = :realm and customer = :customer order by opened_at, id;

-- name: standing_changes_of
select was, became, holds, cause, changed_at from standing_changes where realm = :realm and customer = :customer order by id;

-- name: entries_by_day
-- What was consumed is summed by lot and day (UTC): an app consumes often.
select lot, kind, sum(amount)::bigint as amount, count(*) as entries, clause, min(cause) as cause, max(effective_at) as effective_at
from entries where realm = :realm and customer = :customer
group by lot, kind, clause, case when kind = 'consumed' then (effective_at at time zone 'UTC')::date end, case when kind <> 'consumed' then id end
order by max(effective_at), min(id);

-- name: standing_counts
select standing, count(*) as customers from accounts where realm = any(:realms::text[]) and standing <> 'good' group by standing;

-- name: alert_counts
select severity, count(*) as alerts from alerts where realm = any(:realms::text[]) and resolved_at is null group by severity;

-- name: credit_sums
select kind, count(*) as lots, sum(granted)::bigint as granted, sum(consumed)::bigint as consumed, sum(expired)::bigint as expired,
       sum(forfeited)::bigint as forfeited, sum(taken_back)::bigint as taken_back, sum(remaining)::bigint as remaining
from lots where realm = any(:realms::text[]) group by kind
order by array_position(array['trial', 'included', 'purchased', 'service'], kind);

-- name: case_counts^
select count(*) as waiting, count(*) filter (where due_at <= moment(realm)) as overdue, min(due_at) as next_due_at
from cases where realm = any(:realms::text[]) and state = 'open';

-- name: notice_counts
select state, count(*) as notices
from (select realm, state from notices where state = 'waiting'
      union all select realm, state from notices where state in ('failed', 'held')) kept
where realm = any(:realms::text[]) group by state;
