-- Statements of the notices: the outbox towards the merchant's app, and alerts as people read them.

-- name: save_notices
-- In the order of telling: a customer's notices are numbered under the customer's lock. What is too old to be news is held.
insert into notices (id, realm, customer, type, body, state, error)
select told.id, :realm, told.customer, told.type, told.body, case when told.old then 'held' else 'waiting' end,
       case when told.old then 'it was true for too long already to be news' end
from (select t.id, t.customer, t.type, t.body, t.place, t.true_at < moment(:realm) - make_interval(secs => :news_for_s) as old
      from unnest(:ids::text[], :customers::text[], :types::text[], :bodies::bytea[], :true_at::timestamptz[])
        with ordinality as t (id, customer, type, body, true_at, place)) told
order by told.place
on conflict (id) do nothing
returning id;

-- name: claim_notice^
-- The oldest waiting notice of a customer that nobody is sending. The lease in `next_at` is the claim: it ends by itself, so
-- whoever dies over one leaves it to the others. A customer's later notices wait for it.
update notices set attempts = attempts + 1, next_at = now() + make_interval(secs => :lease_s)
where id = (
    select n.id from notices n
    where n.state = 'waiting' and n.next_at <= now() and n.realm ~ :realms
      and not exists (select 1 from notices o where o.realm = n.realm and o.customer = n.customer and o.number < n.number
                      and o.state = 'waiting')
    order by n.next_at, n.number limit 1 for update skip locked)
returning id, realm, customer, type, body, attempts;

-- name: notice_sent^
-- Unless it was taken from us meanwhile. What was said about its failing is over.
with sent as (
    update notices set state = 'sent', sent_at = now(), error = null
    where id = :id and state = 'waiting' and attempts = :attempts
    returning realm, customer
), resolved as (
    update alerts set resolved_at = now() from sent
    where alerts.realm = sent.realm and alerts.cause = 'notice_failed:' || sent.customer and alerts.resolved_at is null
      and not exists (select 1 from notices n where n.realm = sent.realm and n.customer = sent.customer and n.state = 'failed')
)
select realm from sent;

-- name: postpone_notices!
-- This one again later, and with it everything that waits behind it, so that it is not looked at in vain.
with failed as (
    update notices set error = :error, next_at = now() + make_interval(secs => :wait_s)
    where id = :id and state = 'waiting' and attempts = :attempts
    returning realm, customer, number
)
update notices set next_at = now() + make_interval(secs => :wait_s) from failed
where notices.realm = failed.realm and notices.customer = failed.customer and notices.number > failed.number
  and notices.state = 'waiting';

-- name: give_up_notice^
-- The rest of this customer's notices go on without it, and a person hears of it: one alert for a customer.
with given_up as (
    update notices set state = 'failed', error = :error where id = :id and state = 'waiting' and attempts = :attempts
    returning id, realm, customer, type
)
insert into alerts (realm, cause, kind, severity, customer, subject, sentence)
select realm, 'notice_failed:' || customer, 'notice_failed', 'warning', customer, id,
       'The notice ' || id || ' (' || type || ') about ' || customer || ' did not reach the merchant''s app: ' || :error
       || '. The app may not know it. When it answers again: finalsale notices replay ' || id
from given_up
on conflict (realm, cause) do update
set severity = excluded.severity, subject = excluded.subject, sentence = excluded.sentence, resolved_at = null,
    raised_at = case when alerts.resolved_at is null then alerts.raised_at else now() end
returning subject;

-- name: hold_unaddressed!
-- Nobody to tell them to: an hour is left to a deployment in which only some workers know the address yet.
update notices set state = 'held', error = 'FINALSALE_APP_WEBHOOK_URL is not set'
where state = 'waiting' and next_at < now() - interval '1 hour' and realm ~ :realms;

-- name: replay_notices
update notices set state = 'waiting', attempts = 0, next_at = now(), error = null, sent_at = null
where realm = any(:realms::text[])
  and (:ids::text[] is null or id = any(:ids::text[]))
  and (:customer::text is null or customer = :customer)
  and (:since::timestamptz is null or created_at >= :since)
  and (:state::text is null or state = :state)
returning id;

-- name: read_notices
select id, realm, customer, type, state, attempts, next_at, error, created_at, sent_at from notices
where realm = any(:realms::text[])
  and (:customer::text is null or customer = :customer)
  and (:state::text is null or state = :state)
order by number desc
limit :most::int;

-- name: read_notice^
select id, realm, customer, type, body, state, attempts, next_at, error, created_at, sent_at from notices
where realm = any(:realms::text[]) and id = :id;

-- name: read_alerts
select realm, cause, kind, severity, customer, subject, sentence, raised_at, resolved_at, told_at, told_step, acked_by, acked_at,
       ack_note
from alerts
where realm = any(:realms::text[]) and (:resolved::bool or resolved_at is null)
order by resolved_at is not null, array_position(array['critical', 'warning', 'note'], severity), raised_at desc, cause
limit :most::int;
