-- Statements of operators' acts, and of what people read about credits and disputes.

-- name: realms_of_customer
select r.realm from unnest(:realms::text[]) as r (realm)
where exists (select from objects o where o.realm = r.realm and o.customer = :customer) order by r.realm;

-- name: save_operator_act^
insert into acts (id, realm, customer, kind, body) values (:id, :realm, :customer, :kind, :body)
on conflict (id) do nothing returning id;

-- name: account_now^
select standing, access_until, body, changed_at from accounts where realm = :realm and customer = :customer;

-- name: is_to_be_judged$
select exists (select from wakeups where realm = :realm and customer = :customer and due_at <= moment(:realm));

-- name: credits_left$
select coalesce(sum(available), 0)::bigint from customer_credits where realm = :realm and customer = :customer;

-- name: consume_by_hand^
select outcome, consumed, remaining, available from consume_credits(:realm, :customer, :key, :credits::bigint);

-- name: read_lots
select id, kind, clause, granted_at, ends_at, cause, granted, consumed, expired, forfeited, taken_back, remaining from lots
where realm = :realm and customer = :customer order by granted_at, id;

-- name: read_entries
select id, lot, kind, amount, clause, cause, effective_at, recorded_at from entries
where realm = :realm and customer = :customer order by id;

-- name: dispute_decisions
-- The decisions in force about disputes (7), which are few: by clause, not by looking at every object.
select d.realm, d.subject, d.customer, d.verdict, o.body as fact
from decisions d join objects o on o.realm = d.realm and o.id = d.subject
where d.realm = any(:realms::text[]) and d.clause = '7' and o.kind = 'dispute'
  and not exists (select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
order by d.subject;

-- name: open_dispute_decisions
-- Of those, without what is over for good and waits for nobody; a row that no release has told of yet may be open.
select d.realm, d.subject, d.customer, d.verdict, o.body as fact
from decisions d join objects o on o.realm = d.realm and o.id = d.subject
where d.realm = any(:realms::text[]) and d.clause = '7' and o.kind = 'dispute' and (d.verdict = 'review' or o.unfinished is not false)
  and not exists (select from decisions later where later.realm = d.realm and later.subject = d.subject and later.revision > d.revision)
order by d.subject;
