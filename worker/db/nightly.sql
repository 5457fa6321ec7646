-- Statements of the nightly run.

-- name: last_due$
select date_trunc('day', (now() - interval '3 hours') at time zone 'utc') at time zone 'utc' + interval '3 hours';

-- name: take_run$
-- Ours if nobody took it, or if the last try was incomplete or died long ago.
insert into schedule_runs (name, due_at) values (:name, :due_at)
on conflict (name, due_at) do update set attempts = schedule_runs.attempts + 1, started_at = now(), state = 'running'
where schedule_runs.state <> 'done' and schedule_runs.started_at < now() - interval '10 minutes'
returning true;

-- name: finish_run!
update schedule_runs set state = :state, finished_at = now(), result = :result where name = :name and due_at = :due_at;

-- name: known_events
select event_id from inbox where event_id = any(:event_ids::text[]);
