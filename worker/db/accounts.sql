-- Statements of accounts: what operators did, standing and access, lots and entries, alerts.

-- name: moment_of$
select moment(:realm);

-- name: acts_of
select customer, body from acts where realm = :realm and customer = any(:customers::text[]) order by acted_at, id;

-- name: declared_outages
select body from outages where realm = :realm order by declared_at, id;

-- name: lots_of
select id, customer, ends_at, granted, consumed, expired, forfeited, taken_back from lots
where realm = :realm and customer = any(:customers::text[]);

-- name: lock_lots
-- In one order, so that a consumption and a closing never wait for each other.
select id, customer, ends_at, granted, consumed, expired, forfeited, taken_back from lots
where realm = :realm and id = any(:ids::text[]) order by id for update;

-- name: accounts_of
select customer, body, changed_at from accounts where realm = :realm and customer = any(:customers::text[]);

-- name: open_alerts_of
-- Those that judging a file raises and resolves; others have their own masters.
select customer, cause, severity, sentence from alerts
where realm = :realm and customer = any(:customers::text[]) and resolved_at is null
  and kind not in ('case_near_due', 'case_overdue', 'notice_failed', 'refund_failed', 'refund_in_doubt', 'review_waiting');

-- name: save_accounts!
insert into accounts (realm, customer, standing, holds, access_until, body, changed_at)
select :realm, told.customer, told.standing, told.holds, told.access_until, told.body, :now
from unnest(:customers::text[], :standings::text[], :holds::int[], :access_until::timestamptz[], :bodies::bytea[])
  as told (customer, standing, holds, access_until, body)
on conflict (realm, customer) do update
set standing = excluded.standing, holds = excluded.holds, access_until = excluded.access_until, body = excluded.body,
    changed_at = excluded.changed_at;

-- name: save_standing_change!
insert into standing_changes (realm, customer, was, became, holds, cause, changed_at)
values (:realm, :customer, :was, :became, :holds, :cause, :now);

-- name: save_lots!
-- A grant is frozen; only its end in sight may move.
insert into lots (realm, id, customer, kind, clause, granted_at, ends_at, cause)
select :realm, * from unnest(:ids::text[], :customers::text[], :kinds::text[], :clauses::text[], :granted_at::timestamptz[],
                             :ends_at::timestamptz[], :causes::text[])
on conflict (realm, id) do update set ends_at = excluded.ends_at where lots.ends_at is distinct from excluded.ends_at;

-- name: save_entries!
insert into entries (realm, lot, customer, kind, amount, clause, cause, effective_at)
select :realm, * from unnest(:lots::text[], :customers::text[], :kinds::text[], :amounts::bigint[], :clauses::text[],
                             :causes::text[], :effective_at::timestamptz[]);

-- name: raise_alerts
-- What a person closed is raised again only with something else to say.
insert into alerts (realm, cause, kind, severity, customer, subject, sentence, raised_at)
select :realm, *, now() from unnest(:causes::text[], :kinds::text[], :severities::text[], :customers::text[], :subjects::text[],
                             :sentences::text[])
on conflict (realm, cause) do update
set kind = excluded.kind, severity = excluded.severity, customer = excluded.customer, subject = excluded.subject,
    sentence = excluded.sentence, resolved_at = null, closed_at = null,
    raised_at = case when alerts.resolved_at is null then alerts.raised_at else excluded.raised_at end
where alerts.closed_at is null or (alerts.severity, alerts.sentence) is distinct from (excluded.severity, excluded.sentence)
returning cause;

-- name: resolve_alerts!
update alerts set resolved_at = now() where realm = :realm and cause = any(:causes::text[]) and resolved_at is null;

-- name: refunds_made
-- Our refunds by their action, with the decision that made them.
select a.id as action, a.subject, a.decision_subject, d.body,
       (select b.subject from actions b where b.realm = a.realm and b.decision_subject = a.decision_subject
         and b.kind = 'cancel_subscription' and b.state = 'sent' limit 1) as ended
from actions a join decisions d on d.id = a.decision_id
where a.realm = :realm and a.id = any(:actions::text[]) and a.kind = 'refund';

-- name: wake_overdue!
-- Lots whose end has passed with something left, whatever became of their wake-up (3.3: the third way).
insert into wakeups (realm, customer, due_at)
select distinct realm, customer, least(now(), moment(realm)) - interval '1 hour' from lots
where ends_at <= greatest(moment('test'), now()) and ends_at <= moment(realm) - interval '10 minutes'
  and granted - consumed - expired - forfeited - taken_back > 0
on conflict (realm, customer) do update set due_at = least(wakeups.due_at, excluded.due_at);
