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
select id, body from cases where realm = :realm and customer = any(:customers::text[]) for update;

-- name: erase_staged!
-- What runs hold staged of them, as Stripe says it.
with found as (delete from found where customer = any(:customers::text[]))
delete from unheard where object = any(:ids::text[]);

-- name: payload_slice
-- Payloads by key, to look into.
select event_id, received_at, payload from inbox
where event_id > :after and octet_length(payload) > 0 and realm = :realm and state in ('done', 'ignored', 'quarantined')
order by event_id limit :most::int;

-- name: erase_payloads!
update inbox set payload = '' where event_id = any(:event_ids::text[]) and state in ('done', 'ignored', 'quarantined');

-- name: empty_payloads!
-- Of events that were just settled and told of an erased customer.
update inbox set payload = '' where event_id = any(:event_ids::text[]) and state = 'done';

-- name: erase_case_texts!
update case_acts set text = :gone where case_id = any(:case_ids::text[]) and text not in ('', :gone);

-- name: erase_review_notes!
update review_acts set note = :gone from decisions d
where d.id = review_acts.decision_id and d.realm = :realm and d.customer = any(:customers::text[]) and note not in ('', :gone);
