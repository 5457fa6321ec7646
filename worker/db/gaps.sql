-- Statements about times in which Stripe could not make events.

-- name: note_gaps!
-- A replayed event changes nothing, except that it may know more: the object.
insert into gaps (event_id, realm, since, until, object)
select event_id, realm, to_timestamp(since), to_timestamp(until), object
from unnest(:event_ids::text[], :realms::text[], :sinces::bigint[], :untils::bigint[], :objects::text[])
     as told (event_id, realm, since, until, object)
on conflict (event_id) do update set since = excluded.since, until = excluded.until, object = excluded.object
where gaps.object is null and excluded.object is not null;

-- name: open_gaps
-- Those that a run can read now: until then objects may be on their way here.
select event_id, extract(epoch from since)::bigint as since, extract(epoch from until)::bigint as until, object
from gaps
where realm = :realm and state = 'open' and until <= now() - make_interval(secs => :grace_s::int)
order by since, event_id;

-- name: gaps_without_object
-- Also of those that a run has read: the object may be older than the gap. Stripe keeps v2 events for 30 days.
select event_id from gaps
where realm = :realm and object is null and told_at > now() - interval '30 days'
order by told_at, event_id
limit :most;

-- name: close_gaps!
update gaps set state = 'read', read_at = now()
where realm = :realm and state = 'open'
  and exists (select from unnest(:los::bigint[], :his::bigint[]) as seen (lo, hi)
              where to_timestamp(lo) <= since and until <= to_timestamp(hi));
