-- name: store_events!
-- Duplicates, within the batch and of stored rows, are passed over. It neither returns nor names a conflict target, so that
-- a role with nothing but INSERT can run it.
insert into inbox (event_id, realm, type, api_version, created_at, payload, state, error)
select event_id, :realm, type, :api_version, to_timestamp(created_s), payload,
       case when :ignored_because::text is null then 'waiting' else 'ignored' end, :ignored_because
from unnest(:event_ids::text[], :types::text[], :created_s::bigint[], :payloads::bytea[])
     as event (event_id, type, created_s, payload)
on conflict do nothing;

-- name: count_waiting$
-- The backlog, counted no further than somebody asks.
select count(*) from (select from inbox where state = 'waiting' limit :most) as waiting;
