-- Statements of the audit: what operators did, the chain over what must never change, and its verification.

-- name: record_operator_act!
insert into operator_acts (realm, by_name, role, via, act, subject, reason, before, after)
values (:realm, :by_name, :role, :via, :act, :subject, :reason, :before, :after);

-- name: list_operator_acts
select id, realm, by_name, role, via, act, subject, reason, before, after, acted_at from operator_acts
where (realm = any(:realms::text[]) or realm = '')
  and (:by_name::text is null or by_name = :by_name)
  and (:act::text is null or act = :act)
  and (:subject::text is null or subject = :subject)
  and (:before_id::bigint is null or id < :before_id)
order by id desc
limit :most::int;

-- name: may_append$
-- One sequencer at a time, and only where there is something to do.
select ((select number from audit_queue where number > :above::bigint order by number limit 1) is not null
        or exists (select from audit_backfill)) and pg_try_advisory_xact_lock(:key);

-- name: may_check$
select pg_try_advisory_xact_lock(:key);

-- name: chain_tip^
-- The newest link, the moment that the links of this round bear, and between which transactions the snapshot lies.
select now() as moment, tip.seq, tip.hash, pg_snapshot_xmin(pg_current_snapshot())::text::bigint as oldest_at_work,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next_at_work from (select 1) one
left join lateral (select seq, hash from audit_chain order by seq desc limit 1) tip on true;

-- name: take_queue
-- By presence, not by a cursor: a number below others that are chained already may be committed late.
select number, source, realm, row_id, content from audit_queue where number > :above::bigint order by number limit :most;

-- name: drop_queued!
-- After its links are written: a trigger compares them.
delete from audit_queue where number = any(:numbers::bigint[]);

-- name: backfills_left
select source from audit_backfill order by source;

-- name: backfill_decisions$
-- Rows that were written while the triggers were made may be told twice, with the same content.
with place as materialized (select after, until_at from audit_backfill where source = 'decisions'),
slice as materialized (
    select d.id, d.realm, d.decided_at <= place.until_at as old, d.content
    from place cross join lateral (
        select id, realm, decided_at, audit_content(decisions) as content from decisions where id > place.after order by id limit :most) d),
queued as (
    insert into audit_queue (source, realm, row_id, content) select 'decisions', realm, id, content from slice where old order by id),
moved as (
    update audit_backfill set after = (select max(id) from slice) where source = 'decisions' and exists (select from slice)),
ended as (
    delete from audit_backfill where source = 'decisions' and not exists (select from slice))
select count(*) from slice;

-- name: backfill_actions$
-- Held while they are read, so that no change of an action is queued before what it was.
with place as materialized (select after, until_at from audit_backfill where source = 'actions'),
slice as materialized (
    select a.id, a.realm, a.created_at <= (select until_at from place) as old, audit_content(a) as content
    from actions a where a.id > (select after from place) order by a.id limit :most for share),
queued as (
    insert into audit_queue (source, realm, row_id, content) select 'actions', realm, id, content from slice where old order by id),
moved as (
    update audit_backfill set after = (select max(id) from slice) where source = 'actions' and exists (select from slice)),
ended as (
    delete from audit_backfill where source = 'actions' and not exists (select from slice))
select count(*) from slice;

-- name: backfill_entries$
with place as materialized (select case when after = '' then 0 else after::bigint end as after, until_id from audit_backfill where source = 'entries'),
slice as materialized (
    select e.id, e.realm, e.content
    from place cross join lateral (
        select id, realm, audit_content(entries) as content from entries where id > place.after and id <= place.until_id order by id limit :most) e),
queued as (
    insert into audit_queue (source, realm, row_id, content) select 'entries', realm, id::text, content from slice order by id),
moved as (
    update audit_backfill set after = (select max(id) from slice)::text where source = 'entries' and exists (select from slice)),
ended as (
    delete from audit_backfill where source = 'entries' and not exists (select from slice))
select count(*) from slice;

-- name: read_chain
select seq, source, realm, row_id, content, hash, (extract(epoch from chained_at) * 1000000)::bigint as at_us from audit_chain
where seq > :after::bigint order by seq;

-- name: chain_head^
-- The count ends at ten thousand: a page must not wait for a long queue.
select tip.seq, tip.hash, tip.chained_at, (select count(*) from (select from audit_queue limit 10000) waiting) as pending,
       (select extract(epoch from now() - queued_at)::float8 from audit_queue order by number limit 1) as oldest_s
from (select 1) one left join lateral (select seq, hash, chained_at from audit_chain order by seq desc limit 1) tip on true;

-- name: chained_sources
select source, count(*) as links from audit_chain group by source order by source;

-- name: compare_source
-- Rows of one source that are not what the newest word of chain and queue says of them. Old rows that are still to be chained are
-- passed over.
with told as (
    select distinct on (row_id) row_id, seq, content from (
        select row_id, seq, content, 0 as number from audit_chain where source = :source
        union all select row_id collate "C", null, content, number from audit_queue where source = :source) words
    order by row_id, seq desc nulls first, number desc
), have as (
    select row_id, content from audit_sources where source = :source
), old as (
    select after, until_id, until_at from audit_backfill where source = :source
)
select row_id, told.seq, have.row_id is null as is_gone, told.row_id is null as is_unchained, count(*) over () as problems
from have full join told using (row_id)
where (told.content is distinct from have.content or have.row_id is null or told.row_id is null)
  and not (told.row_id is null and exists (
      select from old where case when until_id is null then have.row_id > after
                                 else have.row_id::bigint > case when after = '' then 0 else after::bigint end
                                      and have.row_id::bigint <= until_id end))
order by seq nulls last, row_id
limit :most::int;

-- name: compare_lots
-- Sums of lots that are not those of their entries.
select l.realm, l.id, count(*) over () as problems
from lots l left join (
    select realm, lot,
           sum(amount) filter (where kind = 'granted') as granted, -sum(amount) filter (where kind = 'consumed') as consumed,
           -sum(amount) filter (where kind = 'expired') as expired, -sum(amount) filter (where kind = 'forfeited') as forfeited,
           -sum(amount) filter (where kind = 'taken_back') as taken_back
    from entries group by realm, lot
) e on e.realm = l.realm and e.lot = l.id
where (l.granted, l.consumed, l.expired, l.forfeited, l.taken_back) is distinct from
      (coalesce(e.granted, 0), coalesce(e.consumed, 0), coalesce(e.expired, 0), coalesce(e.forfeited, 0), coalesce(e.taken_back, 0))
order by l.realm, l.id
limit :most::int;

-- name: two_contents
-- Rows that never change and of which the chain, or the queue, says two different things.
with words as not materialized (
    select source, row_id, seq, content from audit_chain
    union all select source, row_id collate "C", null, content from audit_queue
), twice as (
    select source, row_id from words where source <> all(:changing::text[]) group by source, row_id having count(*) > 1
)
select source, row_id, max(seq) as seq, count(*) over () as problems from words join twice using (source, row_id)
group by source, row_id having count(distinct content) > 1
order by source, row_id
limit :most::int;

-- name: unexplained_changes
select source, row_id, sentence, count(*) over () as problems from audit_unexplained order by source, row_id limit :most::int;

-- name: save_audit_check!
insert into audit_checks (ok, length, hash, problems, body) values (:ok, :length, :hash, :problems, :body);

-- name: newest_audit_check^
select checked_at, ok, length, hash, problems, extract(epoch from now() - checked_at)::float8 as age_s from audit_checks order by id desc limit 1;

-- name: earlier_heads
select length, hash from audit_checks where length > 0 and ok order by id desc limit 1000;

-- name: newest_policy_version^
select sha256 from policy_versions order by id desc limit 1;

-- name: list_policy_versions
select id, sha256, versions, agreements, worker, seen_at from policy_versions order by id desc limit :most::int;

-- name: save_policy_version!
insert into policy_versions (sha256, versions, agreements, body, worker)
values (:sha256, :versions::text[], :agreements, :body, :worker);

-- name: export_rows
select row_id, document from audit_rows(:source, :ids::text[]);
