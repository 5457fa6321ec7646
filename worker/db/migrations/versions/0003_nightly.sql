-- The nightly comparison of Stripe with the books. Only adds: the previous release keeps working on this schema; rows that it
-- writes have no digest or an old one, which costs the next run a second look at them and nothing else.

alter table objects
    add column created       bigint,          -- Stripe's `created`, seconds; null: of no listed kind, or written by an earlier release
    add column digest        bigint,          -- handlers.projection.digest: equal for tellings that say the same
    add column moved_minor   bigint,          -- what it moved of the merchant's money, refunds and disputes negative
    add column currency      text,
    add column unfinished    boolean,         -- it may still change by itself: read again every night, whatever its age
    add column unknown_since timestamptz;     -- Stripe answered that it does not know this object; the row stays, and is shown
create index objects_created on objects (realm, kind, created);
create index objects_unprojected on objects (realm, id) where unfinished is null;  -- by a column that hardly ever changes: updates stay HOT
create index objects_unfinished on objects (realm, kind) where unfinished;
create index objects_unknown on objects (realm) where unknown_since is not null;

create function forget_projection() returns trigger language plpgsql as $$
begin
    new.digest := null;
    new.unfinished := null;
    return new;
end $$;
create trigger objects_changed_otherwise before update of body on objects for each row
    when (new.body <> old.body and current_setting('finalsale.projects', true) is distinct from '1')
    execute function forget_projection();
comment on trigger objects_changed_otherwise on objects is
    'Whoever changes bytes without saying what stands beside them, an earlier release or a person, must not leave a digest that says they agree with Stripe.';

create table paid_periods (
    realm        text not null,
    charge       text collate "C" not null,
    thing        text collate "C" not null,    -- the product or price whose period was paid; `bare …` without an invoice
    person       text collate "C" not null,    -- the smallest customer id of the person
    customer     text collate "C" not null,
    amount_minor bigint not null,
    currency     text not null,
    paid_at      bigint not null,
    period_start bigint not null,
    period_end   bigint not null,
    primary key (realm, charge, thing)
) with (fillfactor = 90);
comment on table paid_periods is 'Which service periods each payment paid (4.3): a projection of the files, so that overlaps are found in one pass over all of them.';
create index paid_periods_customer on paid_periods (realm, customer);

create table runs (
    id          text collate "C" primary key,  -- run_…
    realm       text not null,
    kind        text not null check (kind in ('nightly', 'asked')),
    dry_run     boolean not null,
    asked       text not null,                 -- the window in the asker's words; an unfinished run is resumed by it
    key         text not null default '',      -- a hash of the API key: what another key read is never gone on with
    account     text,                          -- acct_… of the key, where it may be read: another one's objects are never taken in
    plan        bytea not null,                -- reconcile.windows.ScanPlan as JSON: lists, windows, upper edge
    state       text not null default 'running' check (state in ('running', 'done', 'incomplete', 'failed', 'abandoned')),
    stage       text not null default 'scan',  -- scan | reread | compare | plan | heal | report: for people who watch
    exit_code   smallint,
    matched     bytea,                         -- worker.matching.Matched of what was given to healing: counted once
    heard_since bigint,                        -- when the first event was delivered, as known then: the inbox does not keep it for ever
    since       bigint,                        -- of a finished run that healed: from here on the books know everything
    attempts    integer not null default 1,
    started_at  timestamptz not null default now(),
    seen_at     timestamptz not null default now(),
    finished_at timestamptz,
    report      bytea                          -- reconcile.report.Report as JSON
);
comment on table runs is 'Every comparison with Stripe and its report. A finished slice is recorded, so a killed run goes on where it stopped.';
create index runs_started on runs (realm, started_at);

create table slices (
    run      text collate "C" not null references runs (id) on delete cascade,
    list     text not null,                    -- reconcile.windows.LISTS
    hi       bigint not null,                  -- [lo, hi) of `created`, seconds. Lists run backwards: hi stays, lo rises when it is split
    lo       bigint not null,
    cursor   text collate "C",                 -- the last object read; null before the first page
    state    text not null default 'open' check (state in ('open', 'done', 'unread')),
    pages    integer not null default 0,
    objects  integer not null default 0,
    retries  integer not null default 0,
    first_id text collate "C",
    last_id  text collate "C",
    error    text,
    primary key (run, list, hi)
);
comment on table slices is 'The completeness certificate of a run, as it grows: one row per chain of pages.';

create table scanned (
    run     text collate "C" not null references runs (id) on delete cascade,
    id      text collate "C" not null,
    kind    text not null,
    created bigint not null,
    as_of   bigint not null,
    digest  bigint not null,
    primary key (run, id)
);
comment on table scanned is 'What Stripe listed during a run: narrow, so that millions are compared in one pass.';

create table found (
    run      text collate "C" not null references runs (id) on delete cascade,
    id       text collate "C" not null,
    kind     text not null,
    customer text collate "C",                 -- whose it is, once that is known
    as_of    bigint not null,
    listed   boolean not null,                 -- read from Stripe during the run; false: told by an unheard event only
    state    text not null default 'staged' check (state in ('staged', 'same', 'heal', 'healed', 'failed')),
    body     bytea not null,                   -- handlers.customer.encode(fact): what Stripe says, folded within the run
    primary key (run, id)
);
comment on table found is 'What Stripe says of objects that the books do not have, or have otherwise: staged by the scan, healed through the one door.';
create index found_customer on found (run, customer);
create index found_to_heal on found (run, customer, id) where state = 'heal';

create table unheard (
    run       text collate "C" not null references runs (id) on delete cascade,
    event_id  text collate "C" not null,
    type      text not null,
    created   bigint not null,
    object    text collate "C",                -- the object it is about
    payload   bytea not null,                  -- worker.inbox.pack of the event as Stripe listed it
    primary key (run, event_id)
);
comment on table unheard is 'Events that Stripe lists and that never arrived here.';
create index unheard_object on unheard (run, object);

create table unread (
    run    text collate "C" not null references runs (id) on delete cascade,
    list   text not null,
    what   text not null,                      -- an object id, or a slice as lo..hi
    why    text not null,                      -- our own words
    primary key (run, list, what)
);
comment on table unread is 'What a run could not read. One row is enough to make it incomplete.';

create table balance_moves (
    run      text collate "C" not null references runs (id) on delete cascade,
    id       text collate "C" not null,        -- txn_…
    type     text not null,                    -- charge, payment, refund, payment_refund, adjustment, stripe_fee, payout, …
    category text not null,                    -- reporting_category
    source   text collate "C",                 -- the object that moved the money
    amount   bigint not null,                  -- gross, minor units of `currency`; money that left is negative
    fee      bigint not null,
    currency text not null,
    created  bigint not null,
    rate     double precision,                 -- exchange_rate where presentment and settlement currency differ
    primary key (run, id)
);
comment on table balance_moves is 'Stripe''s balance transactions of a run''s window: the truth about money.';
create index balance_moves_source on balance_moves (run, source);

create table findings (
    run      text collate "C" not null references runs (id) on delete cascade,
    id       text collate "C" not null,        -- what:object
    what     text not null,
    class    text not null check (class in ('auto', 'ask', 'never')),
    object   text collate "C" not null,
    customer text collate "C",
    body     bytea not null,                   -- reconcile.findings.Finding as JSON
    healed   boolean not null default false,
    primary key (run, id)
);
comment on table findings is 'Everything a run found wrong, with its class and what became of it.';

create table gaps (
    event_id text collate "C" primary key,     -- the v2 event that told of it
    realm    text not null,
    since    timestamptz not null,
    until    timestamptz not null,             -- [since, until): in it Stripe failed to make an event
    object   text collate "C",                 -- whose event it was; null: not told yet, see worker.gaps.name_gaps
    state    text not null default 'open' check (state in ('open', 'read')),
    told_at  timestamptz not null default now(),
    read_at  timestamptz
);
comment on table gaps is 'Times for which Stripe says that it could not make an event. Open until a run has read the lists over them.';
create index gaps_open on gaps (realm) where state = 'open';
