-- Statements of retention and erasure.

-- name: prune_from$
-- Where pruning goes on: behind the last slice, or at the oldest event.
select coalesce((select pruned_to from retention), (select min(received_at) from inbox));

-- name: prune_edge$
-- The upper edge of the next slice: at most so many events further, never younger than the retention.
select least(
    now() - make_interval(days => :days),
    coalesce((select received_at from inbox where received_at >= :since::timestamptz order by received_at offset :most::int limit 1),
             now() - make_interval(days => :days)));

-- name: prune_slice$
-- Settled events lose their payload; what is not settled yet keeps it, and is remembered.
with slice as (
    select event_id, state from inbox where received_at >= :since::timestamptz and received_at < :until::timestamptz
), pruned as (
    update inbox set payload = '' from slice
    where inbox.event_id = slice.event_id and slice.state in ('done', 'ignored') and octet_length(inbox.payload) > 0
    returning 1
), kept as (
    insert into unpruned (event_id) select event_id from slice where state not in ('done', 'ignored') on conflict do nothing
), passed as (
    insert into retention (pruned_to) values (:until) on conflict (one) do update set pruned_to = excluded.pruned_to
)
select count(*) from pruned;

-- name: prune_settled$
-- What was passed over, and has been settled since.
with settled as (
    delete from unpruned using inbox where inbox.event_id = unpruned.event_id and inbox.state in ('done', 'ignored')
    returning unpruned.event_id
), pruned as (
    update inbox set payload = '' from settled where inbox.event_id = settled.event_id returning 1
)
select count(*) from pruned;

-- name: prune_tellings!
-- What was told, or need not be told, long ago.
delete from alert_tellings using (
    select realm, cause, raising, step, route from alert_tellings
    where made_at < now() - make_interval(days => :days) and (message is not null or dropped is not null)
    limit :most::int
) old
where (alert_tellings.realm, alert_tellings.cause, alert_tellings.raising, alert_tellings.step, alert_tellings.route)
    = (old.realm, old.cause, old.raising, old.step, old.route)
  and not exists (select from alerts a where a.realm = old.realm and a.cause = old.cause and a.resolved_at is null);

-- name: prune_messages!
delete from alert_messages using (
    select id from alert_messages m
    where m.mode in ('live', 'test') and m.created_at < now() - make_interval(days => :days) and m.state <> 'waiting'
      and not exists (select from alert_tellings t where t.message = m.id)
    limit :most::int
) old
where alert_messages.id = old.id;

-- name: prune_sessions!
delete from console_sessions using (
    select hash from console_sessions where ends_at <= now() order by ends_at limit :most::int
) old
where console_sessions.hash = old.hash;

-- name: erased_among
select customer from erasures where realm = :realm and customer = any(:customers::text[]);

-- name: save_erasures!
insert into erasures (realm, customer, by_name, reason)
select :realm, unnest(:customers::text[]), :by_name, :reason
on conflict (realm, customer) do update set erased_at = now(), by_name = excluded.by_name, reason = excluded.reason;

-- name: erase_objects!
-- Digests stay those of what Stripe says: the next night must not find that we differ.
update objects set body = told.body from unnest(:ids::text[], :bodies::bytea[]) as told (id, body)
where objects.realm = :realm and objects.id = told.id;

-- name: erase_links!
delete from links where realm = :realm and customer = any(:customers::text[]);

-- name: open_matters
-- What speaks against erasing now: money on its way or waiting for a person, and requests without an answer.
select 'action' as what, id, kind || ' ' || state as state from actions
where realm = :realm and customer = any(:customers::text[]) and state in ('proposed', 'planned', 'sending', 'review')
union all
select 'case', id, state from cases where realm = :realm and customer = any(:customers::text[]) and state = 'open'
order by what, id;

-- name: cases_to_erase
select id, customer, state, body from cases where realm = :realm and customer = any(:customers::text[]) for update;

-- name: unmatched_cases
-- Cases of nobody, to look into for the e-mail.
select id, customer, state, body from cases where realm = :realm and customer is null and id > :after order by id limit :most::int;

-- name: lock_cases
select id, customer, body from cases where id = any(:ids::text[]) order by id for update;

-- name: erase_staged!
-- What runs hold staged of them, as Stripe says it.
with found as (delete from found where customer = any(:customers::text[]))
delete from unheard where object = any(:ids::text[]);

-- name: payload_slice
-- Payloads in the order in which they lie, to look into.
select event_id, received_at, payload from inbox
where received_at >= :since::timestamptz and (received_at, event_id) > (:since, :after::text)
  and octet_length(payload) > 0 and realm = :realm and state <> 'waiting'
order by received_at, event_id limit :most::int;

-- name: waiting_slice
select event_id, payload from inbox
where state = 'waiting' and realm = :realm and event_id > :after
order by event_id limit :most::int;

-- name: erase_payloads!
update inbox set payload = '', state = case when state = 'done' then state else 'ignored' end,
    error = case when state in ('quarantined', 'dead') then :error else error end
where event_id = any(:event_ids::text[]) and state <> 'waiting';

-- name: empty_payloads!
-- Of events that were just settled and told of an erased customer.
update inbox set payload = '' where event_id = any(:event_ids::text[]) and state = 'done';

-- name: erase_case_texts!
update case_acts set text = :gone where case_id = any(:case_ids::text[]) and text not in ('', :gone);

-- name: erase_review_notes!
update review_acts set note = :gone from decisions d
where d.id = review_acts.decision_id and d.realm = :realm and d.customer = any(:customers::text[]) and note not in ('', :gone);

-- name: erase_reasons!
-- Of what was done about these customers, their objects and cases, the decisions about them, and their alerts. Why they were erased stays.
update operator_acts set reason = :gone
where reason not in ('', :gone) and act <> 'customers.erase' and subject in (
    select unnest(:ids::text[])
    union select id from decisions where realm = :realm and customer = any(:customers::text[])
    union select subject from decisions where realm = :realm and customer = any(:customers::text[])
    union select id from actions where realm = :realm and customer = any(:customers::text[])
    union select cause from alerts where realm = :realm and customer = any(:customers::text[]));

-- name: erase_ack_notes!
update alerts set ack_note = :gone
where realm = :realm and customer = any(:customers::text[]) and ack_note not in ('', :gone);

-- name: acts_to_erase
select id, body from acts where realm = :realm and customer = any(:customers::text[]) for update;

-- name: erase_act!
update acts set body = :body where id = :id;

-- name: accounts_to_erase
select body from accounts where realm = :realm and customer = any(:customers::text[]) for update;

-- name: erase_account!
update accounts set body = :body where realm = :realm and customer = :customer;
