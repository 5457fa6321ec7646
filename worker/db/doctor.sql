-- Statements of `finalsale doctor`.

-- name: recent_api_versions
-- In which API versions the newest events came; thin ones have none.
select api_version, count(*) as events, max(received_at) as newest
from (select api_version, received_at from inbox
      where (realm = :mode or realm like :mode || ':%') and state <> 'ignored' and received_at > now() - interval '30 days'
      order by received_at desc limit :most) as recent
group by api_version order by max(received_at) desc;

-- name: last_nightly
-- The newest run that ended, and since when one is at work.
select id, state, exit_code, finished_at, extract(epoch from now() - started_at)::bigint as age_s
from runs where realm = :realm and kind = 'nightly' and asked like 'night of %' and not dry_run and state in ('done', 'incomplete', 'failed')
order by started_at desc limit 1;

-- name: count_open_gaps^
select count(*) as gaps, min(since) as since, coalesce(extract(epoch from now() - min(told_at)), 0)::bigint as age_s
from gaps where realm = :realm and state = 'open';
