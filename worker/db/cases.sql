-- Statements of support cases (clause 5): opening, finding, answering, and the clock that alerts before an answer is late.

-- name: case_moment$
select moment(:realm);

-- name: insert_case^
-- Nothing comes back where a case was opened under this key before.
insert into cases (id, realm, customer, opened_at, due_at, alert_at, request_key, body)
values (:id, :realm, :customer, :opened_at, :due_at, :alert_at, :request_key, :body)
on conflict (realm, request_key) where request_key is not null do nothing
returning id;

-- name: case_by_key^
select id, body from cases where realm = :realm and request_key = :request_key;

-- name: cases_by_prefix
select id, realm from cases where realm = any(:realms::text[]) and starts_with(id, :prefix) order by id limit 3;

-- name: read_case^
select id, realm, customer, state, assigned_to, opened_at, due_at, alert_at, answered_at, body, moment(realm) as now
from cases where id = :id;

-- name: lock_case^
select id, realm, customer, state, assigned_to, opened_at, due_at, alert_at, answered_at, body, moment(realm) as now
from cases where id = :id for update;

-- name: list_cases
-- Open ones first, the soonest due at the top; then the others, the newest first.
select id, realm, customer, state, assigned_to, opened_at, due_at, alert_at, answered_at, body, moment(realm) as now
from cases
where realm = any(:realms::text[])
  and (:state::text is null or state = :state)
  and (:assigned::text is null or lower(assigned_to) = lower(:assigned))
  and (not :overdue::bool or state = 'open' and due_at <= moment(realm))
order by state <> 'open', case when state = 'open' then due_at end, opened_at desc, id
limit :most::int;

-- name: write_case!
update cases set customer = :customer, body = :body where id = :id;

-- name: assign_case!
update cases set assigned_to = :assigned_to where id = :id;

-- name: answer_case!
update cases set state = 'answered', answered_at = moment(realm), body = :body where id = :id;

-- name: close_case!
update cases set state = 'closed' where id = :id;

-- name: reopen_case!
update cases set state = 'open', answered_at = null, due_at = :due_at, alert_at = :alert_at, body = :body where id = :id;

-- name: save_case_act!
insert into case_acts (case_id, act, by_name, text, acted_at)
select id, :act, :by_name, :text, moment(realm) from cases where id = :case_id;

-- name: read_case_acts
select act, by_name, text, acted_at from case_acts where case_id = :case_id order by id;

-- name: case_account$
select body from accounts where realm = :realm and customer = :customer;

-- name: case_lots
select id, kind, clause, granted, remaining, expired + forfeited as lapsed, ends_at from lots
where realm = :realm and customer = :customer and granted > 0 order by granted_at, id;

-- name: case_outages
-- Those that gave this customer something.
select o.body from outages o
where o.realm = :realm and exists (
    select 1 from lots l where l.realm = o.realm and l.customer = :customer and starts_with(l.id, 'service:' || o.id || ':'))
order by o.declared_at, o.id;

-- name: cases_near_due
select id, realm, customer, due_at, due_at <= moment(realm) as overdue, body from cases
where state = 'open' and least(alert_at, due_at) <= moment(realm) order by due_at, id;

-- name: raise_case_alert!
insert into alerts (realm, cause, kind, severity, customer, subject, sentence, raised_at)
values (:realm, :cause, :kind, :severity, :customer, :subject, :sentence, moment(:realm))
on conflict (realm, cause) do update
set sentence = excluded.sentence, raised_at = excluded.raised_at, resolved_at = null
where alerts.resolved_at is not null;

-- name: resolve_case_alerts
-- Alerts of cases that are due no more, or at another stage.
update alerts set resolved_at = moment(realm)
where resolved_at is null and kind in ('case_near_due', 'case_overdue') and not cause = any(:standing::text[])
returning cause;

-- name: resolve_alerts_of_case!
update alerts set resolved_at = moment(realm) where realm = :realm and cause = any(:causes::text[]) and resolved_at is null;
