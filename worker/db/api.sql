-- name: customer_now^
-- Everything the merchant's app may ask about a customer, as of one moment. A customer is known by its account, its lots, or
-- any object of Stripe's.
select moment(:realm) as now, a.standing, a.access_until, a.body,
       a.customer is not null
           or exists (select from lots l where l.realm = :realm and l.customer = :customer)
           or exists (select from objects o where o.realm = :realm and o.customer = :customer) as known,
       array(
           select row (l.id, l.kind, l.clause, l.granted, l.consumed, l.remaining, l.granted_at, l.ends_at)
           from lots l where l.realm = :realm and l.customer = :customer
           order by l.ends_at nulls last, l.granted_at, l.id
       ) as lots
from (select) as always left join accounts a on a.realm = :realm and a.customer = :customer;

-- name: consume^
-- Consumes, and tells in the same round trip what a refusal has to say.
select c.outcome, c.consumed, c.remaining, c.available,
       case when c.outcome = 'suspended' then
           (select a.body from accounts a where a.realm = :realm and a.customer = :customer) end as account,
       case when c.outcome = 'insufficient' and c.available = 0 then
           exists (select from accounts a where a.realm = :realm and a.customer = :customer)
           or exists (select from lots l where l.realm = :realm and l.customer = :customer)
           or exists (select from objects o where o.realm = :realm and o.customer = :customer)
       else true end as known
from consume_credits(:realm, :customer, :key, :amount) as c;

-- name: valid_tokens
select id, name, hash, scopes from api_tokens
where revoked_at is null and (expires_at is null or expires_at > now());

-- name: list_tokens
select id, name, scopes, created_at, created_by, expires_at, revoked_at,
       case when revoked_at is not null then 'revoked' when expires_at <= now() then 'expired' else 'valid' end as state
from api_tokens order by created_at desc, id;

-- name: add_token^
insert into api_tokens (id, name, hash, scopes, created_by, expires_at)
values (:id, :name, :hash, :scopes, :by, :expires_at)
returning id, name, scopes, created_at, created_by, expires_at, revoked_at, 'valid' as state;

-- name: revoke_tokens
update api_tokens set revoked_at = now()
where (id = :which or name = :which) and revoked_at is null and (expires_at is null or expires_at > now())
returning id, name, scopes, created_at, created_by, expires_at, revoked_at, 'revoked' as state;

-- name: end_tokens
-- The valid tokens of a name end after the overlap, those that end sooner when they would have.
update api_tokens set expires_at = least(expires_at, now() + :overlap)
where name = :name and revoked_at is null and (expires_at is null or expires_at > now())
returning id, name, scopes, created_at, created_by, expires_at, revoked_at, 'valid' as state;
