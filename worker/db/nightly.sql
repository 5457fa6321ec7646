-- Statements of the nightly run: when it is due, what it compares, what it heals.

-- name: last_due$
select date_trunc('day', (now() - interval '3 hours') at time zone 'utc') at time zone 'utc' + interval '3 hours';

-- name: begin_nights!
-- A deployment that never had a night begins with the next one.
insert into schedule_runs (name, due_at, state, finished_at, result)
select :name, :due_at, 'done', now(), 'the nights begin with the next one'
where not exists (select from schedule_runs where name = :name) on conflict do nothing;

-- name: take_run$
-- Ours if nobody took it, or if the last try was incomplete or died long ago.
insert into schedule_runs (name, due_at) values (:name, :due_at)
on conflict (name, due_at) do update set attempts = schedule_runs.attempts + 1, started_at = now(), state = 'running'
where schedule_runs.state <> 'done' and schedule_runs.started_at < now() - interval '10 minutes' * least(schedule_runs.attempts, 6)
returning true;

-- name: finish_run!
update schedule_runs set state = :state, finished_at = now(), result = :result where name = :name and due_at = :due_at;

-- name: gap_run_lately$
select exists (select from runs where realm = :realm and asked like 'gap %' and state <> 'done' and seen_at > now() - interval '10 minutes');

-- name: last_done_night_of$
-- The newest night that a realm's run was done for, as its words tell it.
select max(asked) from runs where realm = :realm and kind = 'nightly' and asked like 'night of %' and state = 'done';

-- name: known_account$
select account from runs where realm = :realm and account is not null and id <> :run order by started_at desc limit 1;

-- name: save_account!
update runs set account = :account where id = :run;

-- name: anything_listed$
select exists (select from scanned where run = :run);

-- name: heard_since$
-- When the first event was delivered; null: none ever was, and no event is missing.
select least(
    (select extract(epoch from received_at)::bigint from inbox where realm = :realm order by received_at limit 1),
    (select min(heard_since) from runs where realm = :realm));

-- name: taken_in_since$
-- The beginning of what runs have taken in.
select min(since) from runs where realm = :realm;

-- name: undigested
select id, as_of, body from objects where realm = :realm and unfinished is null order by id limit :batch;

-- name: project_objects!
update objects set created = told.created, digest = told.digest, moved_minor = told.moved_minor, currency = told.currency,
    unfinished = told.unfinished
from unnest(:ids::text[], :as_of::bigint[], :created::bigint[], :digests::bigint[], :moved::bigint[], :currencies::text[],
            :unfinished::boolean[]) as told (id, as_of, created, digest, moved_minor, currency, unfinished)
where objects.realm = :realm and objects.id = told.id and objects.unfinished is null and objects.as_of = told.as_of;

-- name: unseen_unfinished
-- What may still change and was on none of the lists: it is read by its id.
select o.kind, o.id from objects o
where o.realm = :realm and o.unfinished and o.unknown_since is null and o.created < :upper::bigint
  and not exists (select from scanned s where s.run = :run and s.id = o.id);

-- name: unseen_told
-- What only an unheard event told of: it is read as it is now.
select f.kind, f.id from found f
where f.run = :run and not f.listed and not exists (select from scanned s where s.run = f.run and s.id = f.id);

-- name: unequal_sides
-- Every row read against every row of the books, in one join: what the books have within the windows and Stripe's lists did not
-- show, and what was listed and is neither in the books just so nor staged. Of what was created outside the windows, which
-- only the lists of what is alive show, each is looked up by key.
with inside as (
    select o.id, o.kind, o.digest, o.as_of, o.unknown_since from unnest(:los::bigint[], :his::bigint[]) as w (lo, hi)
    join objects o on o.realm = :realm and o.kind = any(:kinds::text[]) and o.created >= w.lo and o.created < w.hi
), unequal as materialized (
    select coalesce(i.id, s.id) as id, coalesce(i.kind, s.kind) as kind, s.id is null as unshown, s.digest, s.as_of
    from inside i full join (select id, kind, digest, as_of from scanned where run = :run) s on s.id = i.id
    where s.id is null and i.unknown_since is null or i.id is null or i.digest is distinct from s.digest and (i.as_of <= s.as_of or i.as_of > s.as_of + 300)
)
select u.kind, u.id, u.unshown, case when u.unshown then o.body end as body
from unequal u
left join lateral ( -- `offset 0`: by key, since the planner cannot know how few are unequal
    select o.id, o.digest, o.as_of, o.body from objects o where o.realm = :realm and o.id = u.id offset 0
) o on true
where u.unshown
   or (o.id is null or o.digest is distinct from u.digest and (o.as_of <= u.as_of or o.as_of > u.as_of + 300))
      and not exists (select from found f where f.run = :run and f.id = u.id)
order by u.unshown desc limit :most;

-- name: mark_unknown!
update objects set unknown_since = now() where realm = :realm and id = any(:ids::text[]) and unknown_since is null;

-- name: marked_unknown
-- What an earlier run found that Stripe does not know: told once, and what it claims to have moved is explained ever after.
select id from objects where realm = :realm and unknown_since is not null;

-- name: unowned_found
select id, body from found where run = :run and customer is null and id > :after order by id limit :batch;

-- name: owners_found
select id, customer from found where run = :run and id = any(:ids::text[]) and customer is not null
union all
select id, customer from objects where realm = :realm and id = any(:ids::text[]) and customer is not null;

-- name: own_found!
update found set customer = told.customer from unnest(:ids::text[], :customers::text[]) as told (id, customer)
where found.run = :run and found.id = told.id;

-- name: found_customers
select distinct customer from found where run = :run and state in ('staged', 'heal') and customer > :after order by customer limit :batch;

-- name: laid_over
select id, customer, body from found where run = :run and customer = any(:customers::text[]) and state in ('staged', 'heal');

-- name: staged_of
select id, kind, customer, listed, as_of, body from found where run = :run and customer = any(:customers::text[]) and state = 'staged';

-- name: staged_of_nobody
select id, kind, customer, listed, as_of, body from found where run = :run and customer is null and state = 'staged' and id > :after
order by id limit :batch;

-- name: unheard_about
select object, event_id, type, created from unheard where run = :run and object = any(:ids::text[]) order by created;

-- name: replace_found!
update found set body = :body where run = :run and id = :id;

-- name: pass_over!
update found set state = 'same' where run = :run and id = any(:ids::text[]);

-- name: save_findings!
insert into findings (run, id, what, class, object, customer, body)
select :run, * from unnest(:ids::text[], :whats::text[], :classes::text[], :objects::text[], :customers::text[], :bodies::bytea[])
on conflict (run, id) do update set body = excluded.body, class = excluded.class;

-- name: drop_standing!
-- What is no drift is looked at anew by every attempt; drift, once found, stays found.
delete from findings where run = :run and not (what = any(:drift::text[]));

-- name: unheard_alone
-- Events never heard whose object is right all the same.
select u.event_id, u.type, u.created, u.object, f.customer from unheard u left join found f on f.run = u.run and f.id = u.object
where u.run = :run and not exists (select from findings g where g.run = u.run and g.object = u.object)
  and u.created >= :since::bigint;

-- name: unheard_payloads
select event_id, payload from unheard where run = :run and created >= :since::bigint and event_id > :after order by event_id limit :batch;

-- name: unworkable_events
select event_id, type, state, payload from inbox
where realm = :realm and (state in ('dead', 'quarantined') or state = 'waiting' and created_at < to_timestamp(:before::bigint))
order by received_at limit :most;

-- name: backlog_before$
-- Whether events that Stripe made before the upper edge still wait for their first try.
select exists (select from inbox where realm = :realm and state = 'waiting' and attempts = 0 and next_at <= now()
               and created_at < to_timestamp(:upper::bigint));

-- name: waiting_events
-- Young ones; what waits for longer is held against whoever should have worked on it.
select event_id, payload from inbox where realm = :realm and state = 'waiting' and created_at >= to_timestamp(:since::bigint)
  and event_id > :after order by event_id limit :batch;

-- name: shared_objects$
-- How many of what Stripe listed the books have, counted no further than somebody asks.
select count(*) from (select from scanned s join objects o on o.realm = :realm and o.id = s.id where s.run = :run limit :most) as shared;

-- name: unjudged_overlaps
-- Persons with payments whose paid periods of one thing overlap, and that no decision is about: whether they are copies is for
-- the rules to say. One pass over all paid periods, with one window: a further one would cost as much as the first.
select distinct person from (
    select person, period_start, max(period_end) over (
        partition by person, thing order by period_start rows between unbounded preceding and 1 preceding) as ended
    from paid_periods p
    where realm = :realm
      and not exists (select from decisions d where d.realm = :realm and d.subject = p.charge and d.clause = '4.3')
) each
where ended > period_start;

-- name: decided_subjects
select distinct subject from decisions where realm = :realm and subject = any(:subjects::text[]);

-- name: begin_healing!
with given as (update runs set matched = :matched where id = :run)
update found set state = 'heal' where run = :run and state in ('staged', 'failed');

-- name: matched_before$
select matched from runs where id = :run;

-- name: run_since!
update runs set since = :since, heard_since = :heard_since where id = :run;


-- name: claim_to_heal
-- Whole customers, so that nothing is decided on a part of what was found about one.
select f.run, r.realm, f.id, f.body
from (select run, customer from found where state = 'heal' group by run, customer order by run, customer limit :batch) h
join runs r on r.id = h.run and not r.dry_run
join found f on f.run = h.run and (f.customer = h.customer or (f.customer is null and h.customer is null)) and f.state = 'heal'
limit :most for update of f skip locked;

-- name: claim_to_heal_these
select f.run, r.realm, f.id, f.body from found f join runs r on r.id = f.run
where f.run = :run and f.id = any(:ids::text[]) and f.state = 'heal' for update of f skip locked;

-- name: healed!
update found set state = :state where run = :run and id = any(:ids::text[]);

-- name: still_to_heal
select exists (select from found where run = :run and state = 'heal') as facts,
       exists (select from unheard u join inbox i on i.event_id = u.event_id where u.run = :run and i.state = 'waiting') as events,
       exists (select from wakeups where realm = :realm and customer = any(:customers::text[]) and due_at <= moment(:realm)) as wakeups,
       exists (select from lookups where realm = :realm and state = 'waiting' and next_at <= now()) as lookups,
       exists (select from actions where realm = :realm and state in ('planned', 'sending') and next_at <= now()
         and not coalesce((select is_on from switches where name = 'refunds_paused'), false)) as actions;

-- name: forgive_unhealed!
-- An attempt that is taken up again looks for itself what is still not in the books.
delete from unread where run = :run and list = 'books' and what in (select id from found where run = :run);

-- name: unhealed_facts
-- What could not be settled, or has not been in time: it was read, and it is not in the books.
select id, kind, state from found where run = :run and state in ('heal', 'failed') order by id limit :most;

-- name: wake_these!
insert into wakeups (realm, customer, due_at) select :realm, c, moment(:realm) from unnest(:customers::text[]) as c
on conflict (realm, customer) do update set due_at = least(wakeups.due_at, excluded.due_at);

-- name: auto_findings
select id, object, what from findings where run = :run and class = 'auto' and id > :after order by id limit :batch;

-- name: drifting
select object, what, healed from findings where run = :run and what = any(:drift::text[]);

-- name: drop_findings!
delete from findings where run = :run and what = :what;

-- name: drop_settled!
delete from findings where run = :run and class = 'ask' and what = any(:whats::text[]) and not (id = any(:ids::text[]));

-- name: findings_to_wake
select distinct customer from findings where run = :run and what = any(:whats::text[]);

-- name: nobodys_references
select o.reference_a, o.reference_b from findings f join objects o on o.realm = :realm and o.id = f.object
where f.run = :run and f.what = :what;

-- name: settled_events
select event_id from inbox where event_id = any(:event_ids::text[]) and state <> 'waiting';

-- name: unread_objects
select list, what from unread where run = :run and what !~ '[.][.]' and what ~ '_' and why <> :but;

-- name: forgive_objects!
delete from unread where run = :run and what = any(:ids::text[]) and why <> :but;

-- name: count_unread$
select count(*) from unread where run = :run;

-- name: found_bodies
select id, body, state, listed from found where run = :run and id = any(:ids::text[]);

-- name: mark_healed!
update findings set healed = true where run = :run and id = any(:ids::text[]);

-- name: ask_about!
update findings set class = 'ask' where run = :run and id = any(:ids::text[]);

-- name: analyze_run!
analyze scanned, found, balance_moves;

-- name: count_findings
select what, class, healed, count(*) as n from findings where run = :run group by what, class, healed;

-- name: some_findings
select body from findings where run = :run order by class = 'auto', what, id limit :most;

-- name: live_workers$
-- Of this release or a later one: earlier ones do not heal.
select count(*) from workers where role = 'worker' and seen_at > now() - interval '30 seconds'
  and substring(detail from 'schema ([0-9]+)') >= '0003';

-- name: raise_run_alert!
insert into alerts (realm, cause, kind, severity, customer, subject, sentence)
values (:realm, :cause, :kind, :severity, '', :subject, :sentence)
on conflict (realm, cause) do update set severity = excluded.severity, subject = excluded.subject, sentence = excluded.sentence,
    raised_at = case when alerts.resolved_at is null then alerts.raised_at else now() end, resolved_at = null;

-- name: resolve_run_alert!
update alerts set resolved_at = now() where realm = :realm and cause = :cause and resolved_at is null;

-- name: newest_look$
-- The newest dry run whose findings are still kept: `policy diff` sees the account as it found it.
select id from runs where realm = :realm and dry_run and state in ('done', 'incomplete')
  and exists (select from found where run = runs.id and state = 'staged') order by started_at desc limit 1;
