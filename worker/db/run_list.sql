-- Statements of `finalsale runs`: every run with its result, and how far an unfinished one is.

-- name: list_runs
-- The report is opened once for each row shown; only its few figures leave the database.
select r.id, r.realm, r.kind, r.dry_run, r.asked, r.state, r.stage, r.exit_code, r.attempts, r.started_at, r.seen_at, r.finished_at,
    to_timestamp((convert_from(r.plan, 'UTF8')::json -> 'windows' -> 0 ->> 'lo')::bigint) as since,
    to_timestamp((convert_from(r.plan, 'UTF8')::json ->> 'upper')::bigint) as until,
    told.result, told.drift, told.unread_total, told.healed
from (
    select * from runs r
    where r.realm = any(:realms::text[])
    order by r.started_at desc, r.id desc
    limit :most::int
) r
left join lateral json_to_record(convert_from(r.report, 'UTF8')::json)
    as told (result text, drift bigint, unread_total bigint, healed bigint) on r.report is not null
order by r.started_at desc, r.id desc;

-- name: find_runs
-- By its id or the beginning of it; `last` is the newest. At most two rows, an exact id first.
select id, realm, kind, dry_run, asked, state, stage, exit_code, attempts, started_at, seen_at, finished_at, report from runs
where realm = any(:realms::text[]) and (:id = 'last' or starts_with(id, :id))
order by id = :id desc, started_at desc, id desc
limit 2;

-- name: run_progress
-- How much of each list is read: slices, pages, objects, and the share of its seconds.
select list, count(*) as slices, count(*) filter (where state = 'done') as done, count(*) filter (where state = 'unread') as unread,
    sum(pages)::bigint as pages, sum(objects)::bigint as objects,
    (coalesce(sum(hi - lo) filter (where state <> 'open'), 0) / greatest(1, sum(hi - lo)))::float8 as share
from slices where run = :run group by list order by list;
