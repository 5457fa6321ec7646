-- The whole policy: operators' acts, standing and access, credits, notices to the merchant's app, alerts, cases, API tokens.
-- Only adds: the previous release keeps working on this schema.

create table rehearsal_clock (
    one   boolean primary key default true check (one),
    ahead interval not null
);
comment on table rehearsal_clock is 'How far the test realms'' clock is ahead of (or, negative, behind) the real one. Empty: no rehearsal. The live realm never looks.';

create function moment(realm text) returns timestamptz language sql stable as $$
    select now() + case when realm like 'test%' then coalesce((select ahead from rehearsal_clock), interval '0') else interval '0' end
$$;
comment on function moment is 'The moment at which a realm is judged: now, and in a rehearsal the test realms'' own clock.';

create table acts (
    id       text collate "C" primary key,
    realm    text not null,
    customer text collate "C" not null,
    kind     text not null check (kind in ('suspend', 'lift', 'keep', 'grant', 'extend')),
    body     bytea not null,                       -- handlers.account.Act as JSON
    acted_at timestamptz not null default now()
);
comment on table acts is 'Append-only: what an operator did about a customer (7, 4.1), with name and reason.';
create index acts_customer on acts (realm, customer);
create trigger acts_append_only before update or delete on acts for each row execute function refuse_change();
create trigger acts_no_truncate before truncate on acts for each statement execute function refuse_change();

create table outages (
    id          text collate "C" not null,
    realm       text not null,
    body        bytea not null,                    -- handlers.account.Outage as JSON
    declared_at timestamptz not null default now(),
    primary key (realm, id)
);
comment on table outages is 'Append-only: declared outages (4.2). The id is a hash of what was declared: declared again, it is the same.';
create trigger outages_append_only before update or delete on outages for each row execute function refuse_change();
create trigger outages_no_truncate before truncate on outages for each statement execute function refuse_change();

create table accounts (
    realm        text not null,
    customer     text collate "C" not null,
    standing     text not null check (standing in ('good', 'flagged', 'suspended')),
    holds        integer not null,
    access_until timestamptz,
    body         bytea not null,                   -- handlers.account.Account as JSON
    changed_at   timestamptz not null,
    primary key (realm, customer)
) with (fillfactor = 80);
comment on table accounts is 'Standing and access of every customer that ever had any (7, 1.2): a projection, judged anew with every change of the file.';
create index accounts_not_good on accounts (realm, standing) where standing <> 'good';

create table standing_changes (
    id         bigint generated always as identity primary key,
    realm      text not null,
    customer   text collate "C" not null,
    was        text not null,
    became     text not null,
    holds      text[] not null,                    -- subjects: disputes, or `operator`
    cause      text not null check (cause <> ''),
    changed_at timestamptz not null
);
comment on table standing_changes is 'Append-only: every change of standing or of its holds, with its cause.';
create index standing_changes_customer on standing_changes (realm, customer, id);
create trigger standing_changes_append_only before update or delete on standing_changes for each row execute function refuse_change();
create trigger standing_changes_no_truncate before truncate on standing_changes for each statement execute function refuse_change();

create table lots (
    realm      text not null,
    id         text collate "C" not null,
    customer   text collate "C" not null,
    kind       text not null check (kind in ('trial', 'included', 'purchased', 'service')),
    clause     text not null,
    granted_at timestamptz not null,
    ends_at    timestamptz,                        -- nothing is consumed from then on; null: no end in sight
    cause      text not null,
    granted    bigint not null default 0,
    consumed   bigint not null default 0,
    expired    bigint not null default 0,
    forfeited  bigint not null default 0,
    taken_back bigint not null default 0,
    remaining  bigint generated always as (granted - consumed - expired - forfeited - taken_back) stored,
    primary key (realm, id),
    constraint lots_never_below_zero check (granted - consumed - expired - forfeited - taken_back >= 0),
    check (least(granted, consumed, expired, forfeited, taken_back) >= 0)
) with (fillfactor = 70);
comment on table lots is 'Grants of credits (3, 4). The sums are kept by the entries'' trigger and by nothing else.';
create index lots_customer on lots (realm, customer);
create index lots_overdue on lots (ends_at) where ends_at is not null and granted - consumed - expired - forfeited - taken_back > 0;

create table entries (
    id           bigint generated always as identity primary key,
    realm        text not null,
    lot          text collate "C" not null,
    customer     text collate "C" not null,
    kind         text not null check (kind in ('granted', 'consumed', 'expired', 'forfeited', 'taken_back')),
    amount       bigint not null check (amount <> 0),  -- what it adds to what remains
    clause       text not null,
    cause        text not null check (cause <> ''),
    key          text,                              -- the caller's, for what was consumed
    effective_at timestamptz not null,
    recorded_at  timestamptz not null default now(),
    foreign key (realm, lot) references lots (realm, id)
);
comment on table entries is 'Append-only postings to lots. A mistake is settled by another entry, never by editing one.';
create index entries_customer on entries (realm, customer, id);

create function post_entries() returns trigger language plpgsql as $$
begin
    update lots set
        granted    = lots.granted    + sums.granted,
        consumed   = lots.consumed   + sums.consumed,
        expired    = lots.expired    + sums.expired,
        forfeited  = lots.forfeited  + sums.forfeited,
        taken_back = lots.taken_back + sums.taken_back
    from (
        select realm, lot,
               coalesce(sum(amount)  filter (where kind = 'granted'), 0)    as granted,
               coalesce(sum(-amount) filter (where kind = 'consumed'), 0)   as consumed,
               coalesce(sum(-amount) filter (where kind = 'expired'), 0)    as expired,
               coalesce(sum(-amount) filter (where kind = 'forfeited'), 0)  as forfeited,
               coalesce(sum(-amount) filter (where kind = 'taken_back'), 0) as taken_back
        from posted group by realm, lot
    ) sums
    where lots.realm = sums.realm and lots.id = sums.lot;
    return null;
end $$;
create trigger entries_post after insert on entries referencing new table as posted for each statement execute function post_entries();
create trigger entries_append_only before update or delete on entries for each row execute function refuse_change();
create trigger entries_no_truncate before truncate on entries for each statement execute function refuse_change();

create table consumptions (
    realm       text not null,
    customer    text collate "C" not null,
    key         text collate "C" not null,
    amount      bigint not null check (amount > 0),
    remaining   bigint not null,                   -- what was left right after it, over all lots
    consumed_at timestamptz not null,
    primary key (realm, customer, key)
);
comment on table consumptions is 'Append-only: one row per caller''s key, so that a repeated request consumes once.';
create trigger consumptions_append_only before update or delete on consumptions for each row execute function refuse_change();
create trigger consumptions_no_truncate before truncate on consumptions for each statement execute function refuse_change();

create function consume_credits(
    in_realm text, in_customer text, in_key text, in_amount bigint,
    out outcome text, out consumed bigint, out remaining bigint, out available bigint
) language plpgsql as $$
declare
    known consumptions;
    state text;
    at_   timestamptz := moment(in_realm);
    lot_  record;
    held  text[];
    rest  bigint := in_amount;
    part  bigint;
begin
    -- one consumption of a customer at a time; the lots' own rows are locked below, in the order of their ids
    perform pg_advisory_xact_lock(hashtextextended('consume ' || in_realm || ' ' || in_customer, 0));
    select * into known from consumptions c where c.realm = in_realm and c.customer = in_customer and c.key = in_key;
    if found then
        outcome := case when known.amount = in_amount then 'repeated' else 'other_amount' end;
        consumed := known.amount;
        remaining := known.remaining;
        return;
    end if;
    select standing into state from accounts a where a.realm = in_realm and a.customer = in_customer;
    select array_agg(locked.id) into held from (
        select l.id from lots l where l.realm = in_realm and l.customer = in_customer
        and granted - l.consumed - expired - forfeited - taken_back > 0 order by l.id for update) locked;
    -- only what is locked is counted and consumed: a lot that got credits back meanwhile may be closing again
    select coalesce(sum(l.remaining), 0) into available from lots l
        where l.realm = in_realm and l.id = any(held) and l.remaining > 0 and (l.ends_at is null or l.ends_at > at_);
    consumed := 0;
    remaining := available;
    if state = 'suspended' then
        outcome := 'suspended';
        return;
    end if;
    if available < in_amount then
        outcome := 'insufficient';
        return;
    end if;
    -- what ends soonest goes first; then trial, included, service, purchased; then the oldest
    for lot_ in
        select l.id, l.remaining, l.clause from lots l
        where l.realm = in_realm and l.id = any(held) and l.remaining > 0 and (l.ends_at is null or l.ends_at > at_)
        order by l.ends_at nulls last, array_position(array['trial', 'included', 'service', 'purchased'], l.kind), l.granted_at, l.id
    loop
        part := least(rest, lot_.remaining);
        insert into entries (realm, lot, customer, kind, amount, clause, cause, key, effective_at)
        values (in_realm, lot_.id, in_customer, 'consumed', -part, lot_.clause, 'consumed by the app under the key ' || in_key, in_key, at_);
        rest := rest - part;
        exit when rest = 0;
    end loop;
    outcome := 'consumed';
    consumed := in_amount;
    remaining := available - in_amount;
    insert into consumptions (realm, customer, key, amount, remaining, consumed_at)
    values (in_realm, in_customer, in_key, in_amount, remaining, at_);
end $$;
comment on function consume_credits is 'Consumes credits once per key: consumed | repeated | other_amount | insufficient | suspended.';

create table notices (
    id           text collate "C" primary key,     -- msg_…: the same for the same cause
    number       bigint generated always as identity,
    realm        text not null,
    customer     text collate "C" not null,
    type         text not null,
    body         bytea not null,                   -- the JSON that is signed and sent
    state        text not null default 'waiting' check (state in ('waiting', 'sent', 'failed', 'held')),
    attempts     integer not null default 0,
    next_at      timestamptz not null default now(),
    error        text,
    created_at   timestamptz not null default now(),
    sent_at      timestamptz
) with (fillfactor = 80);
comment on table notices is 'Outbox of signed notices to the merchant''s app; one customer''s go out in order. held: about something too old to be news.';
create index notices_waiting on notices (next_at) where state = 'waiting';
create index notices_customer on notices (realm, customer, number);

create table alerts (
    realm       text not null,
    cause       text collate "C" not null,
    kind        text not null,
    severity    text not null check (severity in ('critical', 'warning', 'note')),
    customer    text collate "C" not null,
    subject     text collate "C" not null,
    sentence    text not null,
    raised_at   timestamptz not null default now(),
    resolved_at timestamptz,
    primary key (realm, cause)
) with (fillfactor = 80);
comment on table alerts is 'What people should hear of: raised when its cause appears, resolved when it is gone.';
create index alerts_open on alerts (realm, customer) where resolved_at is null;

create table cases (
    id           text collate "C" primary key,
    realm        text not null,
    customer     text collate "C",
    state        text not null default 'open' check (state in ('open', 'answered', 'closed')),
    assigned_to  text,
    opened_at    timestamptz not null,
    due_at       timestamptz not null,             -- 5: an answer within 24 hours
    alert_at     timestamptz not null,
    answered_at  timestamptz,
    request_key  text,                             -- the caller's, so that a repeated request opens one case
    body         bytea not null                    -- handlers.cases.Case as JSON
);
comment on table cases is 'Support requests (5, 5.1): what was asked, what the policy says, the draft answer, and the clock.';
create unique index cases_request_key on cases (realm, request_key) where request_key is not null;
create index cases_waiting on cases (due_at) where state = 'open';
create index cases_customer on cases (realm, customer);

create table case_acts (
    id       bigint generated always as identity primary key,
    case_id  text collate "C" not null references cases (id),
    act      text not null check (act in ('open', 'assign', 'note', 'evaluate', 'answer', 'close', 'reopen')),
    by_name  text not null check (by_name <> ''),
    text     text not null default '',
    acted_at timestamptz not null default now()
);
comment on table case_acts is 'Append-only: what was done about a case, by whom.';
create index case_acts_case on case_acts (case_id, id);
create trigger case_acts_append_only before update or delete on case_acts for each row execute function refuse_change();
create trigger case_acts_no_truncate before truncate on case_acts for each statement execute function refuse_change();

create table api_tokens (
    id         text collate "C" primary key,       -- public part, shown in lists
    name       text not null,
    hash       bytea not null unique,              -- sha256 of the whole token
    scopes     text[] not null,
    created_at timestamptz not null default now(),
    created_by text not null,
    expires_at timestamptz,
    revoked_at timestamptz
);
comment on table api_tokens is 'Bearer tokens of the merchant''s app, as hashes. Several may be valid at once while one is rotated.';

create view customer_standing as
    select realm, customer, standing, holds as open_holds, access_until, changed_at from accounts;
comment on view customer_standing is 'Stable, for the merchant''s app: one row per customer that ever had a subscription, a dispute or an operator''s hold. No row: good, and no access.';

create view customer_credits as
    select realm, customer, id as lot, kind, granted_at, ends_at, granted, consumed, expired, forfeited, taken_back,
           case when ends_at is null or ends_at > moment(realm) then remaining else 0 end as available
    from lots;
comment on view customer_credits is 'Stable, for the merchant''s app: one row per lot. `available` is what can be consumed now, unless the customer is suspended.';

create index decisions_disputes on decisions (realm, subject, revision) where clause = '7';
