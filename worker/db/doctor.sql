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

-- name: doctor_server^
-- What a server must be like so that a 2xx means that the event is kept.
select current_setting('fsync')::bool as fsync, current_setting('full_page_writes')::bool as full_page_writes,
       current_setting('synchronous_commit') as synchronous_commit, current_setting('autovacuum')::bool as autovacuum,
       pg_is_in_recovery() as is_standby, pg_database_size(current_database()) as bytes,
       extract(epoch from clock_timestamp())::float8 as clock_s,
       (select age(datfrozenxid) from pg_database where datname = current_database()) as oldest_xid,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as seats,
       (select count(*) from pg_stat_activity where backend_type = 'client backend') as taken;

-- name: doctor_forgotten^
-- The transaction that has been open the longest, of any program: it holds back vacuum in all tables.
select application_name as program, extract(epoch from now() - xact_start)::float8 as open_s
from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null
order by xact_start limit 1;

-- name: doctor_roles
-- Ourselves, and whoever works beside us under one of our names: what each role may do that no process needs.
select r.rolname as role, r.rolname = current_user as is_mine, r.rolsuper as is_super,
       exists (select from pg_class c where c.oid = to_regclass('inbox') and pg_has_role(r.oid, c.relowner, 'usage')) as is_owner,
       array(select name from (
           select tgrelid::regclass::text as name, tgrelid, bit_or(tgtype::int) as refused from pg_trigger
           where tgfoid in (select oid from pg_proc where proname in ('refuse_change', 'refuse_all_but_erasure')) group by tgrelid
       ) guarded
       where (refused & 8 > 0 and has_table_privilege(r.oid, tgrelid, 'delete'))
          or (refused & 16 > 0 and has_any_column_privilege(r.oid, tgrelid, 'update')) order by name) as rewrites,
       array(select distinct a.application_name from pg_stat_activity a
             where a.usename = r.rolname and a.application_name ~ '^finalsale (web|worker|intake|watch|api|console)') as programs
from pg_roles r
where r.rolname = current_user or exists (
    select from pg_stat_activity a where a.usename = r.rolname and a.datname = current_database()
    and a.application_name ~ '^finalsale (web|worker|intake|watch|api|console)');

-- name: doctor_indexes
select i.relname::text as name, x.indisvalid and x.indisready as is_valid, t.relname::text as table_name
from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class t on t.oid = x.indrelid
where t.relnamespace = 'public'::regnamespace;

-- name: doctor_dead_rows
-- Tables in which much is dead, and since when nobody cleaned up.
select relname::text as name, n_dead_tup as dead, n_live_tup as live,
       extract(epoch from now() - greatest(last_autovacuum, last_vacuum))::float8 as since_s
from pg_stat_user_tables
where relname in ('inbox', 'objects', 'actions', 'lots', 'accounts', 'audit_queue', 'wakeups', 'lookups')
  and n_dead_tup > :least and n_dead_tup > n_live_tup / 2 order by n_dead_tup desc;

-- name: doctor_workers
select role, detail, extract(epoch from now() - seen_at)::float8 as seen_s from workers order by seen_at desc limit 20;

-- name: doctor_operators^
select count(*) as people, count(*) filter (where role = 'admin') as admins from operators o
where removed_at is null and exists (select from operator_tokens t where t.operator = o.name and t.revoked_at is null
                                     and (t.expires_at is null or t.expires_at > now()));

-- name: doctor_retention^
select extract(epoch from now() - (select pruned_to from retention))::float8 / 86400 as pruned_d,
       extract(epoch from now() - (select received_at from inbox order by received_at limit 1))::float8 / 86400 as oldest_d;

-- name: doctor_notices^
select count(*) filter (where state = 'waiting') as waiting, count(*) filter (where state = 'held') as held,
       extract(epoch from now() - min(created_at) filter (where state = 'waiting'))::float8 as oldest_s
from (select state, created_at from notices where state = 'waiting'
      union all select state, created_at from notices where state in ('failed', 'held') and state = 'held') kept;
