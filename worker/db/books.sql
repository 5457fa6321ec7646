-- Statements of the books: claiming events, reading and writing customer files, decisions and what follows from them.

-- name: claim_events
-- Waiting events, oldest first; rows that another worker holds are passed over. The row lock is the claim: it ends with its transaction.
select event_id, realm, payload, attempts from inbox
where state = 'waiting' and next_at <= now()
order by next_at
limit :batch
for update skip locked;

-- name: claim_these_events
select event_id, realm, payload, attempts from inbox
where event_id = any(:event_ids::text[]) and state = 'waiting'
order by event_id
for update skip locked;

-- name: settle_events!
update inbox set state = told.state, error = told.error, settled_at = now(), attempts = attempts + 1
from unnest(:event_ids::text[], :states::text[], :errors::text[]) as told (event_id, state, error)
where inbox.event_id = told.event_id and inbox.state = 'waiting';

-- name: postpone_event!
-- After a failure: again later, with growing distance; after the last attempt a person has to look.
update inbox set attempts = attempts + 1,
                 state = case when attempts + 1 >= :max_attempts::int then 'dead' else state end,
                 settled_at = case when attempts + 1 >= :max_attempts::int then now() end,
                 next_at = now() + least(power(2, attempts), 300) * interval '1 second',
                 error = :error
where event_id = :event_id and state = 'waiting';

-- name: mark_attempts!
update inbox set attempts = attempts + 1 where event_id = any(:event_ids::text[]) and state = 'waiting';

-- name: mark_attempt!
-- Before an event is tried alone after a crash: an event that kills its worker must not go uncounted.
update inbox set attempts = attempts + 1,
                 state = case when attempts + 1 >= :max_attempts::int then 'dead' else state end,
                 error = case when attempts + 1 >= :max_attempts::int then 'its workers died while working on it' else error end
where event_id = :event_id and state = 'waiting'
returning state;

-- name: owners
select id, customer from objects where realm = :realm and id = any(:ids::text[]) and customer is not null;

-- name: waiting_for
-- Objects whose customer was not known and that refer to one of these, and the files of charges that were a guest's until now.
select id, customer, body from objects
where realm = :realm and customer is null
  and (reference_a = any(:ids::text[]) or reference_b = any(:ids::text[]))
union all
select id, customer, body from objects where realm = :realm and customer = any(:guests::text[]);

-- name: keys_of
select customer, key from links where realm = :realm and customer = any(:customers::text[]);

-- name: kin
-- Everybody who may be one person with these customers: shared keys, followed to the end. A key that more than
-- twenty customers share names nobody.
-- `offset 0` keeps the planner from scanning all links: it cannot know how few keys a customer has.
with recursive reached (customer) as (
    select unnest(:customers::text[]) collate "C"
    union
    select sharer.customer
    from reached
    cross join lateral (
        select key from links where realm = :realm and customer = reached.customer offset 0
    ) mine
    cross join lateral (
        select array_agg(l.customer) as customers
        from (select customer from links where realm = :realm and key = mine.key limit 21) l
    ) sharing
    cross join lateral unnest(sharing.customers) as sharer (customer)
    where cardinality(sharing.customers) between 2 and 20
)
select reached.customer, mine.key
from reached
cross join lateral (
    select l.key from links l where l.realm = :realm and l.customer = reached.customer
      and (select count(*) from (select 1 from links k where k.realm = :realm and k.key = l.key limit 21) n) between 2 and 20
    offset 0
) mine;

-- name: lock_keys!
select pg_advisory_xact_lock(key) from unnest(:keys::bigint[]) as key;

-- name: load_objects
select id, customer, body, xmin as version from objects where realm = :realm and customer = any(:customers::text[]);

-- name: load_objects_by_id
select id, customer, body, xmin as version from objects where realm = :realm and id = any(:ids::text[]);

-- name: insert_objects
insert into objects (realm, id, kind, customer, reference_a, reference_b, as_of, body, created, digest, moved_minor, currency,
                     unfinished)
select :realm, * from unnest(:ids::text[], :kinds::text[], :customers::text[], :references_a::text[], :references_b::text[],
                             :as_of::bigint[], :bodies::bytea[], :created::bigint[], :digests::bigint[], :moved::bigint[],
                             :currencies::text[], :unfinished::boolean[])
on conflict do nothing
returning id;

-- name: update_objects
-- Only rows that still are what was read: an object whose customer nobody knows is under no lock, and two workers may hold it.
-- Whoever tells of an object knows it: a mark that Stripe does not is taken off.
update objects set customer = told.customer, reference_a = told.reference_a, reference_b = told.reference_b, as_of = told.as_of,
    body = told.body, created = told.created, digest = told.digest, moved_minor = told.moved_minor, currency = told.currency,
    unfinished = told.unfinished, unknown_since = null
from unnest(:ids::text[], :customers::text[], :references_a::text[], :references_b::text[], :as_of::bigint[], :bodies::bytea[],
            :created::bigint[], :digests::bigint[], :moved::bigint[], :currencies::text[], :unfinished::boolean[],
            :versions::xid[])
  as told (id, customer, reference_a, reference_b, as_of, body, created, digest, moved_minor, currency, unfinished, version)
where objects.realm = :realm and objects.id = told.id and objects.xmin = told.version
returning objects.id;

-- name: save_links!
insert into links (realm, customer, key)
select :realm, * from unnest(:customers::text[], :keys::text[])
on conflict do nothing;

-- name: current_decisions
select distinct on (subject) subject, customer, id, revision, fingerprint, verdict, body from decisions
where realm = :realm and customer = any(:customers::text[])
order by subject, revision desc;

-- name: current_decisions_about
select distinct on (subject) subject, customer, id, revision, fingerprint, verdict, body from decisions
where realm = :realm and subject = any(:subjects::text[])
order by subject, revision desc;

-- name: save_decisions!
insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body)
select told.id, :realm, told.subject, told.revision, told.customer, told.clause, told.rule, told.verdict, told.policy_version,
       told.fingerprint, told.body
from unnest(:ids::text[], :subjects::text[], :revisions::int[], :customers::text[], :clauses::text[], :rules::text[],
            :verdicts::text[], :policy_versions::text[], :fingerprints::text[], :bodies::bytea[])
  as told (id, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body);

-- name: save_paid_periods!
-- What a charge paid for may be told otherwise later: what is not among its rows any more goes.
with told as (
    select * from unnest(:charges::text[], :things::text[], :persons::text[], :customers::text[], :amounts::bigint[],
                         :currencies::text[], :paid_at::bigint[], :starts::bigint[], :ends::bigint[])
      as t (charge, thing, person, customer, amount_minor, currency, paid_at, period_start, period_end)
), gone as (
    delete from paid_periods p using (select distinct charge from told) t
    where p.realm = :realm and p.charge = t.charge
      and not exists (select from told where told.charge = p.charge and told.thing = p.thing)
)
insert into paid_periods as p (realm, charge, thing, person, customer, amount_minor, currency, paid_at, period_start, period_end)
select :realm, charge, thing, person, customer, amount_minor, currency, paid_at, period_start, period_end from told
on conflict (realm, charge, thing) do update
set person = excluded.person, customer = excluded.customer, amount_minor = excluded.amount_minor, currency = excluded.currency,
    paid_at = excluded.paid_at, period_start = excluded.period_start, period_end = excluded.period_end
where (p.person, p.customer, p.amount_minor, p.currency, p.paid_at, p.period_start, p.period_end)
   is distinct from (excluded.person, excluded.customer, excluded.amount_minor, excluded.currency, excluded.paid_at,
                     excluded.period_start, excluded.period_end);

-- name: rejected_subjects
-- What a person said no to: no later revision acts by itself.
select distinct d.subject from review_acts r join decisions d on d.id = r.decision_id
where r.act = 'reject' and d.realm = :realm and d.subject = any(:subjects::text[]);

-- name: begun_actions
-- What was sent or may have been: its decision stands, and its subject is not decided again.
select id, kind, subject, state, decision_subject from actions
where realm = :realm and customer = any(:customers::text[]) and (state in ('sending', 'sent') or stripe_id is not null);

-- name: save_action!
-- An action follows its decision until it is begun. A person's approval survives only a decision that brought no new doubt
-- (`agreed`) and no other amount. What an earlier step did already stays written on a step that now waits for a person.
insert into actions (id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency, state, due_at, next_at)
values (:id, :realm, :kind, :subject, :decision_subject, :decision_id, :customer, :amount_minor::bigint, :currency, :state,
        :due_at, :due_at)
on conflict (realm, kind, subject) do update
set decision_subject = excluded.decision_subject, decision_id = excluded.decision_id, customer = excluded.customer,
    amount_minor = excluded.amount_minor, currency = excluded.currency, settled_at = null,
    (state, approved_by, error) = (
        select case when kept then 'planned' else excluded.state end,
               case when kept then actions.approved_by else '{}'::text[] end,
               case when not kept and excluded.state = 'proposed' then
                   (select 'the balance credit of ' || b.subject || ' was taken back before, as ' || b.stripe_id from actions b
                    where b.realm = excluded.realm and b.decision_subject = excluded.decision_subject and b.step < actions.step
                      and b.kind = 'reverse_balance_credit' and b.state = 'sent') end
        from (select actions.approved_by <> '{}' and actions.state = 'planned' and :agreed::bool
                     and actions.amount_minor is not distinct from excluded.amount_minor as kept) person),
    due_at = excluded.due_at, next_at = excluded.next_at
where actions.first_sent_at is null and actions.stripe_id is null;

-- name: withdraw_actions!
update actions set state = 'withdrawn', settled_at = now(), error = :error
where realm = :realm and decision_subject = :decision_subject and first_sent_at is null
  and state in ('proposed', 'planned', 'review') and not (kind || ' ' || subject = any(:kept::text[]));

-- name: hear_of_refunds!
-- Our own refunds, as Stripe tells of them: one that was sent into silence is found, also after a person gave it up; one that
-- failed later is owed again (where no dispute gives it back), and what should have followed it waits.
with heard as (
    update actions set
        stripe_id = coalesce(actions.stripe_id, told.refund),
        stripe_status = told.status,
        settled_at = coalesce(actions.settled_at, now()),
        state = case when told.status in ('failed', 'canceled') then 'review' else 'sent' end,
        error = case when told.status in ('failed', 'canceled')
                     then 'the refund ' || told.refund || ' ' || told.status || coalesce(' (' || told.failure || ')', '')
                          || ': the duplicate is owed again, by another way, unless a dispute gives it back' end
    from unnest(:actions::text[], :refunds::text[], :charges::text[], :statuses::text[], :failures::text[])
      as told (action, refund, charge, status, failure)
    where actions.realm = :realm and actions.id = told.action and actions.kind = 'refund' and actions.subject = told.charge
      and actions.first_sent_at is not null and coalesce(actions.stripe_id, told.refund) = told.refund
      and (actions.stripe_status is distinct from told.status or actions.state = 'sending')
    returning actions.realm, actions.decision_subject, actions.step, actions.state
)
update actions set state = 'review', settled_at = now(), error = 'waits for a step before it that needs a person'
from heard
where heard.state = 'review' and actions.realm = heard.realm and actions.decision_subject = heard.decision_subject
  and actions.step > heard.step and actions.state = 'planned';

-- name: want_lookups!
-- A wish without delay that comes while the object is being read, or was just read, is not lost: it is read once more.
insert into lookups (realm, kind, id, url, next_at)
select :realm, told.kind, told.id, told.url, now() + told.delay_s * interval '1 second'
from unnest(:kinds::text[], :ids::text[], :urls::text[], :delays_s::int[]) as told (kind, id, url, delay_s)
on conflict (realm, kind, id) do update
set state = 'waiting', url = excluded.url, wanted_at = clock_timestamp(), error = null,
    attempts = case when lookups.state = 'waiting' then lookups.attempts else 0 end,
    next_at = case
        when lookups.state = 'waiting' and lookups.attempts = 0 then least(lookups.next_at, excluded.next_at)
        when lookups.state = 'waiting' then lookups.next_at
        else greatest(excluded.next_at, lookups.wanted_at + case lookups.state when 'failed' then interval '1 minute' else interval '2 seconds' end)
    end
where lookups.state <> 'waiting' or excluded.next_at <= now();

-- name: wake_later!
insert into wakeups (realm, customer, due_at) values (:realm, :customer, :due_at)
on conflict (realm, customer) do update set due_at = least(wakeups.due_at, excluded.due_at);

-- name: due_wakeups
-- The realms' clocks differ in a rehearsal; the first condition is the index's.
select realm, customer from wakeups
where due_at <= greatest(now(), moment('test')) and due_at <= moment(realm) order by due_at limit :batch;

-- name: wake_now!
-- Under the lock of the customer, before the file is judged: what that judgement asks for is kept.
delete from wakeups where realm = :realm and customer = any(:customers::text[]) and due_at <= moment(:realm);

-- name: wake_again!
update wakeups set due_at = moment(realm) + interval '10 minutes' where realm = :realm and customer = :customer;

-- name: found_orphans
-- Objects that waited for another one which has come since (two workers may have passed each other).
select o.realm, o.id, o.body from objects o
where o.customer is null and exists (
    select 1 from objects p where p.realm = o.realm and p.id in (o.reference_a, o.reference_b) and p.customer is not null)
limit :batch;
