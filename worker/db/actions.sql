-- Statements of the actions: what is due, the steps of the exactly-once recipe, and what people say about it.

-- name: due_actions
-- Steps of one decision go in order: a balance credit is reversed before the refund, a subscription is cancelled after it.
select a.id from actions a
where a.state in ('planned', 'sending') and a.next_at <= now() and a.due_at <= now() and a.realm ~ :realms
  and not exists (select 1 from actions b where b.realm = a.realm and b.decision_subject = a.decision_subject
                  and b.step < a.step and b.state not in ('sent', 'withdrawn'))
  and not exists (select 1 from switches where name = 'refunds_paused' and is_on)
order by a.next_at
limit :batch;

-- name: action^
select *, state in ('planned', 'sending') and next_at <= now() and due_at <= now() as is_due from actions where id = :id;

-- name: action_for_update^
-- By the database's clock: Stripe may forget an idempotency key after 24 hours; an hour less leaves room.
select a.*, state in ('planned', 'sending') and next_at <= now() and due_at <= now() as is_due,
    key_since < now() - interval '23 hours' as key_is_old, extract(epoch from now())::bigint as now_s,
    exists (select 1 from actions b where b.realm = a.realm and b.decision_subject = a.decision_subject
            and b.step < a.step and b.state not in ('sent', 'withdrawn')) as is_blocked
from actions a where id = :id for update;

-- name: decision_of_action^
select d.body, d.verdict, d.id from decisions d where d.realm = :realm and d.subject = :subject
order by d.revision desc limit 1;

-- name: refunded_today$
-- Everything that was sent or may have been, whatever became of it: what is in doubt counts.
select coalesce(sum(amount_minor), 0)::bigint from actions
where realm = :realm and kind = 'refund' and currency = :currency and id <> :id
  and first_sent_at >= date_trunc('day', now() at time zone 'utc') at time zone 'utc';

-- name: is_paused$
select coalesce((select is_on from switches where name = 'refunds_paused'), false);

-- name: begin_sending^
-- Committed before the call. From here on what would be sent can never change.
update actions set state = 'sending', first_sent_at = coalesce(first_sent_at, now()), key_since = now(), generation = generation + 1,
    idempotency_key = 'finalsale:' || kind || ':' || id || ':' || (generation + 1),
    parameters = coalesce(parameters, :parameters::bytea), refunded_before_minor = coalesce(refunded_before_minor, :refunded_before_minor),
    error = null
where id = :id and state in ('planned', 'sending')
returning *;

-- name: mark_sent!
update actions set state = 'sent', stripe_id = coalesce(stripe_id, :stripe_id), stripe_status = coalesce(stripe_status, :stripe_status),
    settled_at = now(), error = null
where id = :id and state = 'sending';

-- name: already_true!
-- What was wanted is so already; nothing was sent.
update actions set state = 'sent', first_sent_at = coalesce(first_sent_at, now()), generation = greatest(generation, 1),
    idempotency_key = coalesce(idempotency_key, 'finalsale:' || kind || ':' || id || ':0'), stripe_id = :stripe_id,
    stripe_status = :stripe_status, settled_at = now(), error = null
where id = :id and state in ('planned', 'sending');

-- name: postpone_action!
-- Again later, with growing distance up to a minute, at least `:at_least_s`.
update actions set attempts = attempts + 1, error = :error,
    next_at = now() + greatest(least(power(2, least(attempts, 10)) * 0.25, 60), :at_least_s::float8) * interval '1 second'
where id = :id and state in ('planned', 'sending');

-- name: age_key!
-- This key answers with its stored failure for as long as it lives: the next look may take a new one.
update actions set key_since = now() - interval '24 hours' where id = :id and state = 'sending';

-- name: wait_for_person!
-- This step and every later one of the same decision: one yes is for all of them.
update actions set state = 'proposed', error = :error
where realm = :realm and decision_subject = :decision_subject and step >= :step and state = 'planned' and first_sent_at is null;

-- name: to_review!
-- This step needs a person, and so does every later step of the same decision. What an earlier step did is said with it.
update actions a set state = 'review', settled_at = now(),
    error = case when id <> :id then 'waits for a step before it that needs a person' else :error || coalesce(
        (select '; the balance credit of ' || b.subject || ' was taken back before, as ' || b.stripe_id from actions b
         where b.realm = a.realm and b.decision_subject = a.decision_subject and b.step < a.step
           and b.kind = 'reverse_balance_credit' and b.state = 'sent'), '') end
where state in ('planned', 'sending', 'sent') and (id = :id or (realm = :realm and decision_subject = :decision_subject
    and step > :step and state = 'planned'));

-- name: take_lookups
-- Taken for a moment: whoever dies over one leaves it to the others.
update lookups set next_at = now() + interval '10 seconds'
where (realm, kind, id) in (
    select realm, kind, id from lookups where state = 'waiting' and next_at <= now() and realm ~ :realms
    order by next_at limit :batch for update skip locked)
returning realm, kind, id, url, attempts, wanted_at;

-- name: lookup_done!
-- Unless it was wished for again since it was taken: then what was read may be too old already.
update lookups set error = null, attempts = attempts + 1, next_at = now() + least(power(2, attempts), 600) * interval '1 second',
    state = case when wanted_at = :wanted_at then 'done' when attempts + 1 >= 10 then 'failed' else 'waiting' end
where realm = :realm and kind = :kind and id = :id;

-- name: lookup_failed!
update lookups set attempts = attempts + 1, error = :error, next_at = now() + least(power(2, attempts), 600) * interval '1 second',
    state = case when :definite::bool or attempts + 1 >= 10 then 'failed' else state end
where realm = :realm and kind = :kind and id = :id;

-- name: beat!
insert into workers (id, role, detail) values (:id, :role, :detail)
on conflict (id) do update set seen_at = now(), detail = excluded.detail;

-- name: bury!
delete from workers where id = :id or seen_at < now() - interval '1 day';
