-- Operators of the console, their tokens, and the browsers they are signed in with.

-- name: lock_operators!
-- Everything that changes who may do what comes one after the other.
select pg_advisory_xact_lock(hashtext('finalsale operators'));

-- name: add_operator^
insert into operators (name, folded, role, created_by) values (:name, :folded, :role, :by)
on conflict do nothing
returning name;

-- name: find_operator^
select name, role from operators where folded = :folded and removed_at is null;

-- name: list_operators
select o.name, o.role, o.created_at, o.created_by, o.removed_at,
       (select max(s.seen_at) from console_sessions s where s.operator = o.name) as seen_at
from operators o
order by o.removed_at is not null, o.folded;

-- name: count_admins_besides$
-- Admins who could sign in without this operator, and without this token.
select count(distinct o.name)
from operators o join operator_tokens t on t.operator = o.name
where o.role = 'admin' and o.removed_at is null and t.revoked_at is null and (t.expires_at is null or t.expires_at > now())
and o.name <> :operator and t.id <> :token;

-- name: operator_who_decides^
-- Whether anybody is an active operator, and whether this is one who may decide.
select exists (select from operators where removed_at is null) as are_known,
       exists (select from operators where folded = :folded and role in ('decide', 'admin') and removed_at is null) as is_one;

-- name: set_operator_role!
update operators set role = :role where name = :name;

-- name: remove_operator!
with gone as (update operators set removed_at = now() where name = :name and removed_at is null returning name),
     ended as (delete from console_sessions s using gone where s.operator = gone.name)
update operator_tokens t set revoked_at = now() from gone where t.operator = gone.name and t.revoked_at is null;

-- name: add_operator_token!
insert into operator_tokens (id, operator, hash, sieve, created_by, expires_at)
values (:id, :operator, :hash, :sieve, :by, :expires_at);

-- name: list_operator_tokens
select id, operator, created_at, created_by, expires_at, revoked_at,
       case when revoked_at is not null then 'revoked' when expires_at <= now() then 'expired' else 'valid' end as state
from operator_tokens
order by created_at desc, id;

-- name: end_operator_tokens
update operator_tokens set expires_at = least(expires_at, now() + :overlap::interval)
where operator = :name and revoked_at is null and (expires_at is null or expires_at > now())
returning id, expires_at;

-- name: revoke_operator_token^
with ended as (delete from console_sessions where token = :id)
update operator_tokens set revoked_at = now() where id = :id and revoked_at is null
returning operator, revoked_at;

-- name: find_operator_token^
-- What signing in with this token needs to know; nothing where it is not valid any more.
select t.hash, t.sieve, o.name, o.role
from operator_tokens t join operators o on o.name = t.operator
where t.id = :id and t.revoked_at is null and (t.expires_at is null or t.expires_at > now()) and o.removed_at is null;

-- name: begin_session!
-- Takes ended sessions along, a few at a time: nobody else cleans up.
with old as (delete from console_sessions where hash in
                 (select hash from console_sessions where ends_at <= now() order by ends_at limit 100))
insert into console_sessions (hash, operator, token, csrf, ends_at)
values (:hash, :operator, :token, :csrf, now() + :lifetime::interval);

-- name: find_session^
-- The session of a cookie with its operator's role as it is now. Idle or ended ones, and those of a token or an operator that
-- is gone, are not found.
select s.operator, s.token, s.csrf, s.said, o.role, now() - s.seen_at > interval '1 minute' as is_stale
from console_sessions s
join operators o on o.name = s.operator and o.removed_at is null
join operator_tokens t on t.id = s.token and t.revoked_at is null and (t.expires_at is null or t.expires_at > now())
where s.hash = :hash and s.ends_at > now() and s.seen_at > now() - :idle::interval;

-- name: touch_session!
update console_sessions set seen_at = now(), said = null where hash = :hash;

-- name: say_in_session!
update console_sessions set said = :said where hash = :hash;

-- name: end_session^
delete from console_sessions where hash = :hash returning operator;
