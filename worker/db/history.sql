-- Statements over the whole history, and of declared outages.

-- name: customers_after
select customer from objects
where realm = :realm and customer > :after and as_of >= :since_s::bigint and (:kind::text is null or kind = :kind)
group by customer order by customer limit :batch;

-- name: save_outage$
insert into outages (realm, id, body, declared_at) values (:realm, :id, :body, moment(:realm))
on conflict do nothing returning true;

-- name: wake_subscribers$
-- Every customer with a subscription: whether the outage met it is the rules' matter.
with woken as (
    insert into wakeups (realm, customer, due_at)
    select distinct realm, customer, moment(realm) - interval '1 day' from objects
    where realm = :realm and kind = 'subscription' and customer is not null
    on conflict (realm, customer) do update set due_at = least(wakeups.due_at, excluded.due_at)
    returning 1
) select count(*) from woken;

-- name: read_outages
select o.body, o.declared_at,
       (select count(*) from lots l where l.realm = o.realm and l.id like 'service:' || o.id || ':%') as subscriptions,
       (select coalesce(sum(l.granted), 0)::bigint from lots l where l.realm = o.realm and l.id like 'service:' || o.id || ':%') as credits,
       (select count(*) from wakeups w where w.realm = o.realm and w.due_at <= moment(o.realm)) as still_to_judge
from outages o where o.realm = any(:realms::text[]) and (:id::text is null or o.id = :id)
order by o.declared_at desc;
