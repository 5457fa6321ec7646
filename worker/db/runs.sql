-- Statements of a run over Stripe's lists: the run itself, its slices, and what it read.

-- name: try_run_lock$
select pg_try_advisory_lock(:lock);

-- name: free_run_lock$
select pg_advisory_unlock(:lock);

-- name: running_run^
select id, started_at from runs where realm = :realm and state = 'running' order by started_at desc limit 1;

-- name: resume_run^
-- The newest unfinished run of the same question. Later than that, its answer would be about the past: its edge is fixed.
update runs set attempts = attempts + 1, seen_at = now(), state = 'running'
where id = (
    select id from runs
    where realm = :realm and kind = :kind and asked = :asked and dry_run = :dry_run and key = :key
      and (state = 'running' or (state = 'incomplete' and kind = 'nightly'))
      and started_at > now() - case kind when 'nightly' then interval '24 hours' else interval '1 hour' end
    order by started_at desc limit 1
)
returning id, plan;

-- name: abandon_runs!
-- What nobody can take up again.
update runs set state = 'abandoned', finished_at = now()
where realm = :realm and state = 'running' and (:but::text is null or id <> :but) and started_at <= now() - interval '24 hours';

-- name: forget_scanned!
delete from scanned using runs where runs.id = scanned.run and runs.realm = :realm and (runs.state in ('done', 'failed', 'abandoned') or runs.state = 'incomplete' and runs.kind <> 'nightly' or runs.started_at <= now() - interval '24 hours' and runs.state <> 'running');

-- name: forget_unheard!
delete from unheard using runs where runs.id = unheard.run and runs.realm = :realm and (runs.state in ('done', 'failed', 'abandoned') or runs.state = 'incomplete' and runs.kind <> 'nightly' or runs.started_at <= now() - interval '24 hours' and runs.state <> 'running');

-- name: forget_balance_moves!
delete from balance_moves using runs where runs.id = balance_moves.run and runs.realm = :realm and (runs.state in ('done', 'failed', 'abandoned') or runs.state = 'incomplete' and runs.kind <> 'nightly' or runs.started_at <= now() - interval '24 hours' and runs.state <> 'running');

-- name: forget_found!
-- The newest dry run's stay: `policy diff` judges them. So does what still waits to be healed.
delete from found using runs
where runs.id = found.run and found.state <> 'heal' and runs.realm = :realm and (runs.state in ('done', 'failed', 'abandoned') or runs.state = 'incomplete' and runs.kind <> 'nightly' or runs.started_at <= now() - interval '24 hours' and runs.state <> 'running')
  and runs.id is distinct from (
    select id from runs where realm = :realm and dry_run and state in ('done', 'incomplete')
    order by started_at desc limit 1);

-- name: disown_run!
-- What it read is not ours, and nobody may go on with it.
with mine as (select :id::text as run), failed as (
    update runs set state = 'failed', finished_at = now() where id = (select run from mine)
), a as (delete from scanned where run = (select run from mine)),
   b as (delete from found where run = (select run from mine)),
   c as (delete from unheard where run = (select run from mine))
delete from balance_moves where run = (select run from mine);

-- name: begin_run!
insert into runs (id, realm, kind, dry_run, asked, key, plan) values (:id, :realm, :kind, :dry_run, :asked, :key, :plan);

-- name: stage_run!
update runs set stage = :stage, seen_at = now() where id = :id;

-- name: end_run!
update runs set state = :state, exit_code = :exit_code, report = :report, finished_at = now(), seen_at = now() where id = :id;

-- name: add_slices!
insert into slices (run, list, lo, hi)
select :run, list, lo, hi from unnest(:lists::text[], :los::bigint[], :his::bigint[]) as cut (list, lo, hi);

-- name: slices_of
select list, lo, hi, cursor, state, objects from slices where run = :run order by list, hi desc;

-- name: forgive_slices!
-- A slice that could not be read is tried again by whoever takes the run up.
with again as (
    update slices set state = 'open', error = null where run = :run and state = 'unread' returning list, lo, hi
)
delete from unread using again
where unread.run = :run and unread.list = again.list and unread.what = again.lo || '..' || again.hi;

-- name: save_page!
-- One page is read: the slice moves on. `lo` rises where its older part was given away.
update slices set cursor = :cursor, lo = :lo, state = :state, pages = pages + 1, objects = objects + :objects,
                  retries = retries + :retries, first_id = coalesce(first_id, :first_id), last_id = coalesce(:last_id, last_id)
where run = :run and list = :list and hi = :hi;

-- name: give_up_slice!
update slices set state = 'unread', error = :error, retries = retries + :retries
where run = :run and list = :list and hi = :hi;

-- name: restart_slice!
-- The object that the cursor names is gone at Stripe: from the top again.
update slices set cursor = null, objects = 0, first_id = null, last_id = null, retries = retries + 1
where run = :run and list = :list and hi = :hi;

-- name: digests_of
select id, digest from objects where realm = :realm and id = any(:ids::text[]);

-- name: reopen_lists!
-- A list that hid something is read again from its beginning, and what was read by id counts as not shown until it does.
with hidden as (
    delete from unread where run = :run and why = :why returning list, what
), again as (
    update slices set state = 'open', cursor = null, pages = 0, objects = 0, first_id = null, last_id = null
    where run = :run and list in (select list from hidden)
)
delete from scanned where run = :run and id in (select what from hidden);

-- name: forgive_moves!
-- Single objects' balance transactions are asked for anew by every attempt.
delete from unread where run = :run and list = 'balance_transactions' and what !~ '[.][.]' and what !~ '^txn_';

-- name: save_scanned
-- Objects of one kind, read at one moment, as narrow rows. Returns those that the books lack or have otherwise, unless what they
-- have is younger; unless that is younger than can be.
with told as (
    select id, created, digest from unnest(:ids::text[], :created::bigint[], :digests::bigint[]) as t (id, created, digest)
), saved as (
    insert into scanned (run, id, kind, created, as_of, digest)
    select :run, id, :kind, created, :as_of::bigint, digest from told
    on conflict (run, id) do update set as_of = excluded.as_of, digest = excluded.digest where excluded.as_of >= scanned.as_of
)
select told.id from told left join objects o on o.realm = :realm and o.id = told.id
where o.id is null or (o.digest is distinct from told.digest and (o.as_of <= :as_of::bigint or o.as_of > :as_of::bigint + 300));

-- name: found_of
select id, customer, listed, body from found where run = :run and id = any(:ids::text[]);

-- name: save_found!
-- Facts of one kind and moment.
insert into found (run, id, kind, customer, as_of, listed, body)
select :run, id, :kind, customer, :as_of::bigint, :listed::boolean, body
from unnest(:ids::text[], :customers::text[], :bodies::bytea[]) as t (id, customer, body)
on conflict (run, id) do update set customer = excluded.customer, as_of = excluded.as_of, listed = excluded.listed, body = excluded.body,
    state = case when excluded.body = found.body then found.state else 'staged' end;

-- name: erased_owners
-- Which of these belong to erased customers; with what is known of one that belonged to such a customer before.
select told.id, case when exists (select from erasures e where e.realm = :realm and e.customer = o.customer) then o.body end as body
from unnest(:ids::text[], :customers::text[]) as told (id, customer)
left join objects o on o.realm = :realm and o.id = told.id
where exists (select from erasures e where e.realm = :realm and e.customer in (told.customer, o.customer));

-- name: take_digests!
-- Of an erased customer's objects Stripe says more than the books may keep: that is no difference, and none in the next night.
update objects set digest = s.digest
from found f
join erasures e on e.realm = :realm and e.customer = f.customer
join scanned s on s.run = f.run and s.id = f.id
where f.run = :run and f.state in ('same', 'healed')
  and objects.realm = :realm and objects.id = f.id and objects.as_of <= s.as_of and objects.digest is distinct from s.digest;

-- name: heard_events
select event_id from inbox where event_id = any(:event_ids::text[]);

-- name: save_unheard!
insert into unheard (run, event_id, type, created, object, payload)
select :run, * from unnest(:event_ids::text[], :types::text[], :created::bigint[], :objects::text[], :payloads::bytea[])
on conflict do nothing;

-- name: save_balance_moves!
insert into balance_moves (run, id, type, category, source, amount, fee, currency, created, rate)
select :run, * from unnest(:ids::text[], :types::text[], :categories::text[], :sources::text[], :amounts::bigint[],
                           :fees::bigint[], :currencies::text[], :created::bigint[], :rates::double precision[])
on conflict do nothing;

-- name: save_unread!
insert into unread (run, list, what, why) values (:run, :list, :what, :why)
on conflict (run, list, what) do update set why = excluded.why;

-- name: certificate
-- One row per list, in the order of the plan's names; a slice that is still open counts as unread.
select list, count(*) as slices, sum(pages)::bigint as pages, sum(objects)::bigint as objects, sum(retries)::bigint as retries,
       (array_agg(first_id order by hi desc) filter (where first_id is not null))[1] as first_id,
       (array_agg(last_id order by lo) filter (where last_id is not null))[1] as last_id,
       count(*) filter (where state = 'open')
         + (select count(*) from unread u where u.run = s.run and u.list = s.list) as unread
from slices s where run = :run group by run, list
union all
select list, 0, 0, 0, 0, null, null, count(*) from unread u
where run = :run and not exists (select from slices s where s.run = u.run and s.list = u.list) group by list;

-- name: unread_of
select list, what, why from unread where run = :run order by list, what limit :most;
