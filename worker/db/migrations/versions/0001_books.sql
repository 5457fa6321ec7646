-- The queue of record, the customer files, and everything that was decided and done about them.
-- realm = 'live' | 'test', with ':acct_…' behind it for a connected account; nothing ever crosses a realm.

create table inbox (
    event_id     text collate "C" not null,
    realm        text not null,
    type         text not null,
    api_version  text,
    created_at   timestamptz not null,             -- Stripe's clock
    received_at  timestamptz not null default now(),
    payload      bytea storage external not null,  -- the bytes as signed, packed by worker.inbox.pack; Postgres need not try again
    state        text not null default 'waiting'
                 check (state in ('waiting', 'done', 'ignored', 'quarantined', 'dead')),
    attempts     smallint not null default 0,
    next_at      timestamptz not null default now(),
    error        text,                             -- our own words, never the payload's
    settled_at   timestamptz,
    primary key (event_id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
comment on table inbox is 'Every event Stripe delivered. A 2xx means its row is committed here. waiting -> done | quarantined | dead; ignored = wrong mode.';
-- claimed by state, never by a sequence cursor: a row that commits late must not be skipped
create index inbox_waiting on inbox (next_at) where state = 'waiting';
create index inbox_troubled on inbox (received_at) where state in ('quarantined', 'dead');
create index inbox_received on inbox (received_at);

create table objects (
    realm       text not null,
    id          text collate "C" not null,
    kind        text not null,
    customer    text collate "C",                  -- null: nobody knows yet whose it is; it waits for what it refers to
    reference_a text collate "C",
    reference_b text collate "C",
    as_of       bigint not null,                   -- Stripe's clock, seconds
    body        bytea not null,    -- handlers.customer.encode(fact)
    primary key (realm, id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
comment on table objects is 'The newest telling of every Stripe object we read, folded; all rows of one customer are that customer''s file.';
create index objects_customer on objects (realm, customer);
create index objects_orphans_a on objects (realm, reference_a) where customer is null;
create index objects_orphans_b on objects (realm, reference_b) where customer is null;

create table links (
    realm    text not null,
    key      text collate "C" not null,            -- person:… | email:… | card:…, each a hash
    customer text collate "C" not null,
    primary key (realm, customer, key)
);
comment on table links is 'What may tie two customers to one person (4.3, D4). Evidence is weighed by the rules; this only says whose files to read together.';
create index links_key on links (realm, key, customer);

create table decisions (
    id             text collate "C" primary key,
    realm          text not null,
    subject        text collate "C" not null,      -- the charge judged
    revision       integer not null,
    customer       text collate "C" not null,
    clause         text not null,
    rule           text not null,
    verdict        text not null check (verdict in ('refund', 'review', 'deny', 'none')),
    policy_version text not null,
    fingerprint    text not null,
    body           bytea not null, -- handlers.decisions.Decision as JSON
    decided_at     timestamptz not null default now(),
    unique (realm, subject, revision)
);
comment on table decisions is 'Append-only. The decision in force for a subject is its highest revision.';
create index decisions_customer on decisions (realm, customer);
create index decisions_verdict on decisions (realm, verdict, decided_at);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
end $$;
create trigger decisions_append_only before update or delete on decisions for each row execute function refuse_change();
create trigger decisions_no_truncate before truncate on decisions for each statement execute function refuse_change();

create table actions (
    id               text collate "C" primary key,
    realm            text not null,
    kind             text not null check (kind in ('refund', 'cancel_subscription', 'reverse_balance_credit')),
    subject          text collate "C" not null,    -- charge, subscription or invoice
    decision_subject text collate "C" not null,    -- the charge whose decision wants it
    decision_id      text collate "C" not null references decisions (id),
    customer         text collate "C" not null,
    amount_minor     bigint check (amount_minor > 0),
    currency         text,
    state            text not null
                     check (state in ('proposed', 'planned', 'sending', 'sent', 'failed', 'review', 'withdrawn')),
    due_at           timestamptz not null,
    next_at          timestamptz not null,
    attempts         integer not null default 0,
    step             smallint not null generated always as
                     (case kind when 'reverse_balance_credit' then 1 when 'refund' then 2 else 3 end) stored,
    generation       smallint not null default 0,  -- a new idempotency key only after Stripe was asked what it knows
    idempotency_key  text unique,
    key_since        timestamptz,                  -- Stripe may forget a key after 24 h
    parameters       bytea,                        -- frozen with the key when `sending` is committed
    refunded_before_minor bigint,                  -- what had gone back of the charge when `sending` was committed
    first_sent_at    timestamptz,
    stripe_id        text collate "C",
    stripe_status    text,
    error            text,
    approved_by      text[] not null default '{}',
    created_at       timestamptz not null default now(),
    settled_at       timestamptz,
    check (kind <> 'refund' or (amount_minor is not null and currency is not null)),
    check (state not in ('sending', 'sent') or (idempotency_key is not null and first_sent_at is not null)),
    -- what exists at Stripe is never planned, sent or withdrawn again
    check (stripe_id is null or state in ('sent', 'review', 'failed')),
    -- one refund action per charge, one cancellation per subscription, one reversal per invoice: ever
    unique (realm, kind, subject)
) with (fillfactor = 80);
comment on table actions is
    'proposed (waits for a person) | planned (waits for due_at) -> sending (committed before the call) -> sent | failed | review; withdrawn when the decision fell away first.';
create index actions_due on actions (next_at) where state in ('planned', 'sending');
create index actions_customer on actions (realm, customer);
create index actions_decision on actions (realm, decision_subject);

-- once `sending` is committed, what would be sent can never change, whoever writes
create function freeze_action() returns trigger language plpgsql as $$
begin
    if (new.id, new.realm, new.kind, new.subject) is distinct from (old.id, old.realm, old.kind, old.subject) then
        raise exception 'action % is about one thing for ever', old.id using errcode = 'restrict_violation';
    end if;
    if old.first_sent_at is not null and
       (new.customer, new.amount_minor, new.currency, new.parameters, new.refunded_before_minor, new.first_sent_at)
       is distinct from
       (old.customer, old.amount_minor, old.currency, old.parameters, old.refunded_before_minor, old.first_sent_at) then
        raise exception 'action % was sent; its amount and parameters are frozen', old.id using errcode = 'restrict_violation';
    end if;
    if old.stripe_id is not null and new.stripe_id is distinct from old.stripe_id or new.generation < old.generation then
        raise exception 'action % was carried out as %', old.id, old.stripe_id using errcode = 'restrict_violation';
    end if;
    if old.state = 'sent' and new.state not in ('sent', 'review') then
        raise exception 'action % was sent; it cannot go back to %', old.id, new.state using errcode = 'restrict_violation';
    end if;
    return new;
end $$;
create trigger actions_freeze before update on actions for each row execute function freeze_action();
create trigger actions_no_delete before delete on actions for each row execute function refuse_change();
create trigger actions_no_truncate before truncate on actions for each statement execute function refuse_change();

create table review_acts (
    id          bigint generated always as identity primary key,
    decision_id text collate "C" not null references decisions (id),
    act         text not null check (act in ('approve', 'reject', 'note')),
    by_name     text not null check (by_name <> ''),
    note        text not null default '',
    acted_at    timestamptz not null default now()
);
comment on table review_acts is 'Append-only: what a person said about a decision, with a name (rule 9 of 4.3).';
create index review_acts_decision on review_acts (decision_id);
create trigger review_acts_append_only before update or delete on review_acts for each row execute function refuse_change();

create table lookups (
    realm     text not null,
    kind      text not null,                        -- object kind, or 'balance'
    id        text collate "C" not null,
    url       text not null,
    state     text not null default 'waiting' check (state in ('waiting', 'done', 'failed')),
    attempts  smallint not null default 0,
    next_at   timestamptz not null default now(),
    wanted_at timestamptz not null default now(),
    error     text,
    primary key (realm, kind, id)
);
comment on table lookups is 'What must be read from Stripe because no event carries it: thin events'' objects, customer balances, long lists. Never on the hot path.';
create index lookups_waiting on lookups (next_at) where state = 'waiting';

create table wakeups (
    realm    text not null,
    customer text collate "C" not null,
    due_at   timestamptz not null,
    primary key (realm, customer)
);
comment on table wakeups is 'Files to judge again although nothing arrives: when a trial is about to be charged, or a lost wake-up must be caught up.';
create index wakeups_due on wakeups (due_at);

create table switches (
    name    text primary key,
    is_on   boolean not null,
    by_name text not null,
    reason  text not null default '',
    set_at  timestamptz not null default now()
);
comment on table switches is 'refunds_paused: nothing is sent to Stripe while it is on.';

create table workers (
    id         uuid primary key,
    role       text not null,
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now(),
    detail     text not null default ''
);
comment on table workers is 'A heartbeat per process, by the database''s clock.';

create table schedule_runs (
    name        text not null,
    due_at      timestamptz not null,
    state       text not null default 'running' check (state in ('running', 'done', 'incomplete')),
    attempts    integer not null default 1,
    started_at  timestamptz not null default now(),
    finished_at timestamptz,
    result      text,                               -- our own words and counts
    primary key (name, due_at)
);
comment on table schedule_runs is 'Every due run of the nightly job. A tick that nobody was up for is caught up, since the question is whether the newest due run is done.';
