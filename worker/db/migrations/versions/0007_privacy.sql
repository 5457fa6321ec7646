-- Retention of payloads, and erasure of a customer's personal data. Only adds: the previous release keeps working on this schema.

create table erasures (
    realm     text not null,
    customer  text collate "C" not null,
    erased_at timestamptz not null default now(),
    by_name   text not null check (by_name <> ''),
    reason    text not null check (reason <> ''),
    primary key (realm, customer)
);
comment on table erasures is 'Customers whose personal data was erased: what Stripe tells of them later is kept without it.';

create table retention (
    one        boolean primary key default true check (one),
    pruned_to  timestamptz not null                -- payloads of settled events received before are gone
);
comment on table retention is 'How far payloads were pruned. An event older than this that was not settled then is in `unpruned`.';

create table unpruned (
    event_id text collate "C" primary key
);
comment on table unpruned is 'Events that were waiting, dead or quarantined when retention passed them: their payload is needed until they are settled.';

-- Metrics and traces (worker.metrics, worker.tracing).

create table metric_totals (
    name   text collate "C" not null,
    labels text collate "C" not null,              -- the labels' values as a JSON list
    value  double precision not null,
    primary key (name, labels)
) with (fillfactor = 50);                          -- a few hundred rows, each changed every ten seconds: room for that on its page
comment on table metric_totals is 'What the processes counted, added up over all of them and over restarts: workers have no port that Prometheus could ask.';

create table action_causes (
    action   text collate "C" primary key,
    realm    text not null,
    event_id text collate "C" not null
);
comment on table action_causes is 'The event whose judgement made an action, so that its refund joins the event''s trace. Written only where traces are on.';
